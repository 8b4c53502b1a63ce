"""The study: trials are asked and told exactly once, by several processes and after a kill."""

from __future__ import annotations

import math
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError

from graft.command import Spread
from graft.environment import describe_environment
from graft.errors import ConfigError, RunError
from graft.search import study as module
from graft.search.database import told_when_lost
from graft.search.importance import importances, says_something
from graft.search.owners import is_running, this_process
from graft.search.sampling import portion, startup
from graft.search.space import Params, Space
from graft.search.study import Study
from graft.search.trials import Outcome
from tests.composing import ROOT
from tests.postgres import Postgres, running

SPACE = Space(
    {
        "optim.lr": Spread((), 1e-4, 0.1, log=True),
        "data.batch_size": Spread((32, 64, 128, 256)),
        "optim.weight_decay": Spread((), 1e-6, 1e-2, log=True),
        "trainer.max_epochs": Spread((), 2, 5, whole=True),
    },
    {"optim.lr": 0.001, "data.batch_size": 128, "optim.weight_decay": 0.0, "trainer.max_epochs": 3},
)
GRID = Space({"seed": Spread((0, 1, 2)), "data.balance": Spread(("none", "loss"))}, {"seed": 1, "data.balance": "none"})


def open_study(
    directory: Path,
    *,
    sampler: str = "random",
    trials: int = 12,
    seed: int = 0,
    space: Space = SPACE,
    maximize: bool = False,
    storage: str | None = None,
    study: str = "graft",
    settings: dict[str, str] | None = None,
) -> Study:
    return Study(
        space,
        sampler=sampler,
        trials=trials,
        seed=seed,
        maximize=maximize,
        journal=directory / "study.journal",
        storage=storage,
        name=study,
        settings=settings or {"seed": "0"},
    )


def finish(study: Study, count: int = 4) -> dict[int, Params]:
    """Run all trials that are left, `count` at a time; a trial's value is its distance from lr 0.01."""
    found = {}
    while trials := study.claim(count):
        for trial in trials:
            value = abs(math.log10(float(trial.params["optim.lr"] or 0)) + 2) if "optim.lr" in trial.params else 0.0
            assert study.tell(trial.number, Outcome("ok", value))
            found[trial.number] = trial.params
    return found


# --- what is proposed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp"])
def test_trial_0_is_the_default_and_the_others_are_in_the_space(tmp_path: Path, sampler: str) -> None:
    found = finish(open_study(tmp_path, sampler=sampler, trials=8))
    assert sorted(found) == list(range(8))
    assert found[0] == SPACE.default
    for params in list(found.values())[1:]:
        assert 1e-4 <= float(params["optim.lr"] or 0) <= 0.1
        assert params["data.batch_size"] in (32, 64, 128, 256)
        assert params["trainer.max_epochs"] in (2, 3, 4, 5)
    assert len({params["optim.lr"] for params in found.values()}) >= 7  # GP may come back to the best one


def test_the_same_seed_proposes_the_same_and_another_does_not(tmp_path: Path) -> None:
    runs = [finish(open_study(tmp_path / name, seed=seed), count) for name, seed, count in
            (("a", 1, 4), ("b", 1, 1), ("c", 2, 4))]  # fmt: skip
    assert runs[0] == runs[1]
    assert runs[0][1] != runs[2][1]


def test_a_random_search_proposes_evenly_in_the_logarithm(tmp_path: Path) -> None:
    found = finish(open_study(tmp_path, trials=201), 50)
    logs = sorted(math.log10(float(found[number]["optim.lr"] or 0)) for number in range(1, 201))
    # Kolmogorov-Smirnov against the uniform distribution over -4 .. -1; 0.115 is the 1 % point of 200 draws
    assert max(abs((at + 0.5) / 200 - (value + 4) / 3) for at, value in enumerate(logs)) < 0.115
    assert {found[number]["data.batch_size"] for number in range(1, 201)} == {32, 64, 128, 256}


def test_tpe_learns(tmp_path: Path) -> None:
    found = finish(open_study(tmp_path, sampler="tpe", trials=40))
    late = [abs(math.log10(float(found[number]["optim.lr"] or 0)) + 2) for number in range(20, 40)]
    assert sorted(late)[10] < 0.4  # at random: 0.75


def test_gp_learns_a_key_whose_default_lies_outside_of_the_space(tmp_path: Path) -> None:
    study = open_study(tmp_path, sampler="gp", trials=24)
    while trials := study.claim(4 if study.unfinished() > 16 else 1):
        for trial in trials:
            decay = float(trial.params["optim.weight_decay"] or 1)  # of trial 0: 0, which no logarithmic range holds
            study.tell(trial.number, Outcome("ok", abs(math.log10(decay) + 4)))
    late = [abs(math.log10(float(record.params["optim.weight_decay"] or 1)) + 4) for record in study.records()[12:]]
    assert statistics.median(late) < 0.3  # at random over -6 .. -2: 1.0


def test_a_grid_is_gone_through_once(tmp_path: Path) -> None:
    found = finish(open_study(tmp_path, sampler="grid", trials=6, space=GRID))
    assert found[0] == {"seed": 1, "data.balance": "none"}
    assert {(params["seed"], params["data.balance"]) for params in found.values()} == {
        (seed, balance) for seed in (0, 1, 2) for balance in ("none", "loss")
    }


def test_what_diverged_teaches_tpe_and_what_failed_counts(tmp_path: Path) -> None:
    study = open_study(tmp_path, sampler="tpe", trials=30)
    while trials := study.claim(4):
        for trial in trials:
            high = float(trial.params["optim.lr"] or 0) > 0.001
            study.tell(trial.number, Outcome("diverged", None, "too high") if high else Outcome("ok", 1.0))
    states = [record.outcome.state for record in study.records() if record.outcome]
    assert len(states) == 30
    # at random two thirds, ten, would
    assert states[15:].count("diverged") <= 7
    failing = open_study(tmp_path / "failing", sampler="tpe", trials=9)
    while trials := failing.claim(4):
        for trial in trials:
            failing.tell(trial.number, Outcome("failed", None, "no memory"))
    assert (failing.unfinished(), len(failing.records()), failing.values()) == (0, 9, {})


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 8), ("tpe", 80), ("random", 8), ("gp", 12), ("grid", 3)])
def test_a_portion_is_at_least_one_trial(sampler: str, trials: int) -> None:
    assert all(1 <= portion(sampler, trials, begun, "cpu") <= 16 for begun in range(trials))


@pytest.mark.parametrize(
    ("sampler", "trials", "on_cpu", "on_gpu"),
    [("random", 200, 16, 256), ("grid", 9, 16, 256), ("tpe", 8, 4, 4), ("tpe", 80, 16, 16), ("tpe", 400, 16, 80)],
)
def test_a_gpu_takes_more_trials_at_a_time(sampler: str, trials: int, on_cpu: int, on_gpu: int) -> None:
    assert (portion(sampler, trials, 0, "cpu"), portion(sampler, trials, 0, "cuda")) == (on_cpu, on_gpu)


def test_gp_is_asked_for_one_at_a_time_after_its_random_start() -> None:
    assert (portion("gp", 30, 0, "cpu"), portion("gp", 30, startup(30), "cpu")) == (10, 1)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_outcomes_come_back(tmp_path: Path) -> None:
    study = open_study(tmp_path, trials=3)
    told = [
        Outcome("ok", 0.5, "", 1.5, ((10, 0.75), (20, 0.5)), 20),
        Outcome("pruned", 0.7, "stopped at rung 10", 0.5, ((10, math.inf),), 10),
        Outcome("failed", None, "RuntimeError: no memory"),
    ]
    for trial, outcome in zip(study.claim(3), told, strict=True):
        study.tell(trial.number, outcome)
    again = open_study(tmp_path, trials=3)
    assert [record.outcome for record in again.records()] == told
    assert again.records()[0].params == SPACE.default
    assert again.values() == {0: 0.5}


def test_a_trial_ends_once(tmp_path: Path) -> None:
    study = open_study(tmp_path, trials=2)
    (first, _) = study.claim(2)
    assert study.tell(first.number, Outcome("ok", 1.0))
    assert not study.tell(first.number, Outcome("ok", 2.0))
    assert study.values() == {0: 1.0}


def test_a_search_can_be_made_longer(tmp_path: Path) -> None:
    first = open_study(tmp_path, trials=3)
    early = finish(first)
    assert first.claim(5) == []
    longer = open_study(tmp_path, trials=6)
    late = finish(longer)
    assert (sorted(early), sorted(late)) == ([0, 1, 2], [3, 4, 5])
    assert late == {n: p for n, p in finish(open_study(tmp_path / "whole", trials=6)).items() if n > 2}


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    open_study(tmp_path, settings={"optim.lr": "0.1", "seed": "0"})
    with pytest.raises(RunError, match=r"holds a search of another configuration: optim\.lr=0\.1 there and 0\.2 here"):
        open_study(tmp_path, settings={"optim.lr": "0.2", "seed": "0"})


@pytest.mark.parametrize(
    "url", ["nonsense", "postgresql+psycopg://nobody@127.0.0.1:1/none", "sqlite:////no/where/x.db"]
)
def test_a_storage_that_cannot_be_opened_is_an_error_in_a_sentence(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"search\.storage=.* cannot be opened: .*accepted is an Optuna URL"):
        open_study(tmp_path, storage=url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://nobody:s3cret@127.0.0.1:1/none",
        "postgresql+psycopg://nobody@127.0.0.1:1/none?password=s3cret",
        "no_such_database://nobody:s3cret@host/none",
        "sqlite://nobody:s3cret@host/none",
    ],
)
def test_a_storage_that_cannot_be_opened_does_not_tell_its_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_study(tmp_path, storage=url)
    assert "s3cret" not in "".join(traceback.format_exception(refused.value))
    assert "nobody" in str(refused.value)


def test_no_record_of_a_command_tells_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["tune.py", "data.root=a:b@c", "search.storage=postgresql+psycopg://me:s3cret@host:5432/db", "optim.lr=1"]
    monkeypatch.setattr(sys, "argv", argv)
    hidden = [*argv[:2], "search.storage=postgresql+psycopg://me:***@host:5432/db", argv[3]]
    assert describe_environment()["argv"] == hidden


def test_what_a_rung_has_seen_is_shared(tmp_path: Path) -> None:
    ours, theirs = open_study(tmp_path), open_study(tmp_path)
    (mine,), (other,) = ours.claim(1), theirs.claim(1)
    ours.report(mine.number, 10, 0.5)
    theirs.report(other.number, 10, 0.25)
    theirs.report(other.number, 20, 0.125)
    assert ours.reached(10) == {0: 0.5, 1: 0.25}
    assert ours.reached(20) == {1: 0.125}


# --- processes -------------------------------------------------------------------------------------------------------

WORKER = """
import sys, time
from pathlib import Path
from tests.test_study import open_study
from graft.search.trials import Outcome
directory, storage, trials, seconds = Path(sys.argv[1]), sys.argv[2] or None, int(sys.argv[3]), float(sys.argv[4])
study = open_study(directory, storage=storage, trials=trials, study=sys.argv[5])
with study.alive():
    while study.unfinished():
        for trial in study.claim(3):
            time.sleep(seconds)
            told = study.tell(trial.number, Outcome("ok", float(trial.params["optim.lr"])))
            print(trial.number, told, flush=True)
        time.sleep(0.01)
"""


def worker(
    directory: Path, *, storage: str = "", study: str = "graft", trials: int = 40, seconds: float = 0.02
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(directory), storage, str(trials), str(seconds), study],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for_trials(study: Study, count: int, process: subprocess.Popen[str]) -> None:
    """Until so many have been begun by whomever."""
    while len(study.records()) < count:
        assert process.poll() is None
        time.sleep(0.02)


def told_by(process: subprocess.Popen[str]) -> list[int]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return [int(line.split()[0]) for line in out.splitlines() if line.endswith("True")]


def test_two_processes_share_a_journal(tmp_path: Path) -> None:
    workers = [worker(tmp_path), worker(tmp_path)]
    parts = [told_by(process) for process in workers]
    assert sorted(parts[0] + parts[1]) == list(range(40))
    assert all(len(part) >= 5 for part in parts)
    records = open_study(tmp_path, trials=40).records()
    whole = finish(open_study(tmp_path / "alone", trials=40))
    assert [record.params for record in records] == [whole[number] for number in range(40)]


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with running(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.mark.slow
def test_two_processes_share_a_postgresql_study(tmp_path: Path, postgres: Postgres) -> None:
    workers = [worker(tmp_path / name, storage=postgres.url, seconds=0.05) for name in "ab"]
    parts = [told_by(process) for process in workers]
    assert sorted(parts[0] + parts[1]) == list(range(40))
    assert all(len(part) >= 5 for part in parts)
    study = open_study(tmp_path, storage=postgres.url, trials=40)
    assert sorted(study.values()) == list(range(40))
    study.close()


@pytest.mark.slow
def test_a_database_that_is_lost_meanwhile_is_told_in_a_line(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        study = open_study(tmp_path, storage=server.url, trials=3)
        (trial,) = study.claim(1)
    url = server.url.replace("graft@", "graft:s3cret@")
    for step in (study.records, lambda: study.claim(1), lambda: study.tell(trial.number, Outcome("ok", 0.5))):
        with pytest.raises(RunError) as told, told_when_lost(url):
            step()
        assert str(told.value).startswith(f"search.storage={server.url.replace('graft@', 'graft:***@')} was lost: ")
        assert str(told.value).endswith("trials that have ended are kept there, the same command goes on")
    study.close()


@pytest.mark.slow
def test_what_a_killed_process_left_in_postgresql_is_done_by_the_other(tmp_path: Path, postgres: Postgres) -> None:
    killed = worker(tmp_path / "a", storage=postgres.url, study="killed", trials=30, seconds=0.5)
    study = open_study(tmp_path, storage=postgres.url, study="killed", trials=30)
    wait_for_trials(study, 4, killed)  # it has told some, and holds the next three
    other = worker(tmp_path / "b", storage=postgres.url, study="killed", trials=30, seconds=0.02)
    wait_for_trials(study, 8, other)
    killed.send_signal(signal.SIGKILL)
    out, _ = killed.communicate()
    told = {int(line.split()[0]) for line in out.splitlines() if line.endswith("True")}
    theirs = told_by(other)
    assert sorted(study.values()) == list(range(30))
    assert told
    assert not told & set(theirs)
    assert len(theirs) == len(set(theirs)) >= 15
    study.close()


def test_what_a_killed_process_left_is_run_again_with_its_number_and_parameters(tmp_path: Path) -> None:
    killed = worker(tmp_path, trials=9, seconds=30)
    study = open_study(tmp_path, trials=9)
    wait_for_trials(study, 3, killed)
    assert [trial.number for trial in study.claim(1)] == [3]  # the first three have an owner who lives
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert killed.stdout is not None
    killed.stdout.close()
    begun = {record.number: record.params for record in study.records()}
    # The kill may have come between a trial's number and its parameters; then they are drawn as they would have been.
    again = {trial.number: trial.params for trial in study.claim(8)}
    assert sorted(again) == [0, 1, 2, 4, 5, 6, 7, 8]
    whole = finish(open_study(tmp_path / "whole", trials=9))
    assert again == {number: params for number, params in whole.items() if number != 3}
    assert all(again[number].items() >= begun[number].items() for number in (0, 1, 2))


def test_a_trial_that_nobody_signed_is_taken_over_at_once(tmp_path: Path) -> None:
    study = open_study(tmp_path, trials=2)
    study._study.ask()  # and its process is killed here, before it could say who it is
    assert [trial.number for trial in study.claim(2)] == [0, 1]


def test_a_trial_that_is_put_back_does_not_keep_its_dead_owner(tmp_path: Path) -> None:
    dead, study, third = (open_study(tmp_path, trials=1) for _ in range(3))
    dying(dead)
    assert len(dead.claim(1)) == 1
    with study._alone:
        study._requeue_abandoned()
        study._study.ask()
        (running,) = third._running()
    assert running.user_attrs["owner"] is None


def test_a_torn_last_line_of_the_journal_is_cut(tmp_path: Path) -> None:
    study = open_study(tmp_path, trials=3)
    assert [trial.number for trial in study.claim(2)] == [0, 1]
    with (tmp_path / "study.journal").open("ab") as file:
        file.write(b'{"op_code":6,"worker_id":"x","trial')  # the disk was full
    assert study.tell(0, Outcome("ok", 0.5))
    assert open_study(tmp_path, trials=3).values() == {0: 0.5}


def test_a_process_that_stops_puts_its_trials_back(tmp_path: Path) -> None:
    study, other = open_study(tmp_path, trials=3), open_study(tmp_path, trials=3)
    other.owner = "another machine/1/2"
    assert len(study.claim(3)) == 3
    assert other.claim(3) == []
    study.release()
    assert [trial.number for trial in other.claim(3)] == [0, 1, 2]


def test_a_process_of_another_machine_is_left_alone_until_it_gives_no_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    theirs, ours = open_study(tmp_path, trials=2), open_study(tmp_path, trials=2)
    theirs.owner = "another machine/1/2"
    assert len(theirs.claim(2)) == 2
    for _ in range(3):
        theirs.sign()
        assert ours.claim(2) == []
        now[0] += module.STALE - 1
    assert ours.claim(2) == []
    now[0] += module.STALE
    assert [trial.number for trial in ours.claim(2)] == [0, 1]


def dying(study: Study) -> None:
    """The study of a process of this machine that ended before."""
    study.owner = f"{this_process().rsplit('/', 2)[0]}/{os.getpid()}/0"


@pytest.fixture(params=["UTC", "America/New_York"])
def zone(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


@pytest.mark.usefixtures("zone")
def test_of_two_that_find_a_dead_process_of_a_database_one_takes_its_trial_over(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    dead, quick, slow = (open_study(tmp_path, storage=url, trials=1) for _ in range(3))
    dying(dead)
    (trial,) = dead.claim(1)
    (seen,) = slow._running()  # and before it acts on that, the other one does
    assert quick.claim(1) == [trial]
    slow._requeue(seen)
    (running,) = quick._running()
    assert running.user_attrs["owner"] == quick.owner
    assert slow.claim(1) == []
    assert quick.tell(0, Outcome("ok", 1.0))
    slow._requeue(running)  # nor is a trial begun again that has ended
    assert slow.values() == {0: 1.0}
    for study in (dead, quick, slow):
        study.close()


@pytest.mark.parametrize(
    "error", [StorageInternalError("lost"), OperationalError("", {}, Exception()), OSError("full")], ids=type
)
def test_a_storage_that_is_away_for_a_moment_does_not_end_the_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(module, "BEAT", 0.001)
    study, beats, back = open_study(tmp_path), [0], threading.Event()

    def sign() -> None:
        beats[0] += 1
        if beats[0] == 1:
            raise error
        back.set()

    monkeypatch.setattr(study, "sign", sign)
    with study.alive():
        assert back.wait(20)


def test_a_process_that_stops_without_its_storage_stops_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(trial: object) -> None:
        raise StorageInternalError("lost")

    study = open_study(tmp_path)
    study.claim(1)
    monkeypatch.setattr(study, "_requeue", away)
    study.release()


def test_a_process_is_known_by_when_it_started() -> None:
    me = this_process()
    machine, pid, started = me.rsplit("/", 2)
    assert is_running(me) is True
    assert is_running(f"{machine}/{pid}/{int(started) - 1}") is False  # the number was used before
    assert is_running(f"elsewhere/{pid}/{started}") is None
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    time.sleep(0.5)  # it has ended, and nobody has asked how
    assert is_running(f"{machine}/{child.pid}/{started}") is False
    child.wait()


# --- importance ------------------------------------------------------------------------------------------------------


def test_importance_finds_the_key_that_matters(tmp_path: Path) -> None:
    study = open_study(tmp_path, trials=60)
    finish(study)
    keys = ["optim.lr", "data.batch_size", "optim.weight_decay"]
    found = importances(study.frozen(), keys, maximize=False, seed=0)
    assert found[0].key == "optim.lr"
    assert found[0].share > 0.7
    assert all(i.low - 0.05 <= i.share <= i.high + 0.05 for i in found)
    assert says_something(found)
    assert found == importances(study.frozen(), keys, maximize=False, seed=0)


def test_importance_of_luck_and_of_few_trials_says_nothing(tmp_path: Path) -> None:
    study = open_study(tmp_path, trials=30)
    while trials := study.claim(10):
        for trial in trials:
            study.tell(trial.number, Outcome("ok", (trial.number * 7919 % 97) / 97))
    keys = ["optim.lr", "data.batch_size", "optim.weight_decay"]
    assert not says_something(importances(study.frozen(), keys, maximize=False, seed=0))
    assert importances(study.frozen()[:9], keys, maximize=False, seed=0) == []
    assert importances(study.frozen(), keys[:1], maximize=False, seed=0) == []
