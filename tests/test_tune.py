"""Whole searches on tiny photos: their files, what goes wrong in them, kills, and the sealed test split."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.exceptions import StorageInternalError

import graft.trainer
from graft.assembly import build_classifier
from graft.classifier import Classifier
from graft.command import take_sweeps
from graft.config import Config, changed
from graft.errors import ConfigError, RunError
from graft.report.trials import read_search
from graft.search import heads_lockstep, heads_stack, retrain
from graft.search.board import table
from graft.search.heads import HeadResult
from graft.search.joint import HeadTrials, train_together
from graft.search.publish import publish
from graft.search.search import SearchResult, search, time_is_up
from graft.search.space import describe, read_space
from graft.search.study import Study
from graft.search.summary import sentences
from graft.trainer import train
from tests.composing import CONF, ROOT, composed
from tests.conftest import REAL_DATA
from tests.pictures import draw_folder
from tests.training import read_json, start, tiny, wait_for

# TINY gives both one value, which alone would leave them out of the space.
SPACE = ("optim.lr=tag(log, interval(1e-3, 1e-1))", "data.batch_size=choice(8, 16)")
KEYS = {"number", "params", "state", "value", "reason", "seconds", "steps"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("photos"))


def tune(photos: Path, run_dir: Path, *argv: str, train: Any = train) -> SearchResult:
    """Search in this process."""
    line = take_sweeps(tiny(photos, run_dir, *argv))
    config = composed(*line.argv)
    space = read_space(config, line)
    config = dataclasses.replace(config, search=dataclasses.replace(config.search, space=describe(config, line)))
    return search(config, space, train, tuple(line.argv))


TEXTS = (".yaml", ".json", ".jsonl", ".csv", ".html")


def openings(run_dir: Path) -> int:
    """How often the test split was opened with these photos."""
    ledger = run_dir.parent / "cache" / "test_openings.jsonl"
    return len(ledger.read_text().splitlines()) if ledger.exists() else 0


def states(run_dir: Path) -> Counter[str]:
    return Counter(trial["state"] for trial in read_json(run_dir / "study.json")["trials"])


@pytest.fixture(scope="module")
def eight(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return tune(photos, tmp_path_factory.mktemp("eight") / "search", *SPACE, "search.trials=8")


# --- a search --------------------------------------------------------------------------------------------------------


def test_study_json_lists_the_trials(eight: SearchResult) -> None:
    study = read_json(eight.run_dir / "study.json")
    assert set(study) == {"trials", "best"}
    assert read_json(eight.run_dir / "progress.json") == {"to_come": 0}
    assert [trial["number"] for trial in study["trials"]] == list(range(8))
    assert all(set(trial) == KEYS for trial in study["trials"])
    assert study["trials"][0]["params"] == {"optim.lr": 0.01, "data.batch_size": 8, "optim.weight_decay": 0.0}
    values = {trial["number"]: trial["value"] for trial in study["trials"] if trial["state"] == "ok"}
    assert study["best"] == min(values, key=lambda number: values[number])


def test_trials_csv_says_the_same(eight: SearchResult) -> None:
    with (eight.run_dir / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    trials = read_json(eight.run_dir / "study.json")["trials"]
    assert [(int(row["number"]), row["state"], float(row["optim.lr"])) for row in rows] == [
        (trial["number"], trial["state"], trial["params"]["optim.lr"]) for trial in trials
    ]


def test_the_best_is_retrained_to_the_same_and_its_bundle_is_there(eight: SearchResult) -> None:
    assert eight.retrained.kept == "retrained"
    assert eight.retrained.value == pytest.approx(eight.retrained.trial_value, abs=1e-5)
    assert (eight.run_dir / "best" / "bundle" / "manifest.json").exists()


def test_a_trial_is_what_an_ordinary_run_of_its_overrides_is(eight: SearchResult, photos: Path, tmp_path: Path) -> None:
    # best.yaml names the photos and the cache too; the other trials' parameters come from study.json
    trial = read_json(eight.run_dir / "study.json")["trials"][2]
    given = [f"{key}={value}" for key, value in trial["params"].items()]
    result = train(composed(*tiny(photos, tmp_path / "run", *given)))
    assert result.metrics["valid/loss"] == pytest.approx(trial["value"], abs=1e-5)


def test_best_yaml_is_taken_by_an_ordinary_run_and_the_command_line_wins(eight: SearchResult) -> None:
    source = f"overrides_from={eight.run_dir / 'best.yaml'}"
    params = read_json(eight.run_dir / "study.json")["trials"][eight.best]["params"]
    config, other = composed(source), composed(source, "optim.lr=0.5")
    assert config.optim.lr == params["optim.lr"]
    assert (other.optim.lr, other.data.batch_size) == (0.5, params["data.batch_size"])
    assert config.data.root == composed(*tiny(Path("x"), eight.run_dir)).data.root.replace("x", config.data.root)
    assert config.search == composed("data=demo").search


def test_test_is_opened_once_by_the_retrained_run(eight: SearchResult) -> None:
    assert openings(eight.run_dir) == 1
    assert eight.retrained.metrics["test/openings"] == 1


def test_the_gain_is_measured_on_other_seeds(eight: SearchResult) -> None:
    assert eight.best != 0
    assert eight.gain is not None
    assert eight.gain.seeds == 5
    assert eight.gain.low < eight.gain.mean < eight.gain.high
    assert eight.repeats.seeds == (1, 2, 3, 4, 5)


def test_seeds_on_the_same_augmented_views_are_told(eight: SearchResult, photos: Path, tmp_path: Path) -> None:
    given = ("search=given", "optim.lr=0.02,0.05", "search.trials=3", "search.repeats=2")
    found = tune(photos, tmp_path / "search", *given, "features.views=1")
    assert (found.same_views, eight.same_views) == (True, False)
    assert found.best > 0
    assert sum("2 other seeds on the same augmented views)" in line for line in sentences(found)) == 1


def test_the_figures_are_there(eight: SearchResult) -> None:
    for name in ("history", "parallel", "importance", "curves"):
        assert "<svg" in (eight.run_dir / "plots" / f"{name}.svg").read_text()


def test_the_summary_says_what_there_is_to_say(eight: SearchResult) -> None:
    said = list(sentences(eight))
    assert said[0].startswith("trials: 8, ")
    for start_of_one in ("gain: best over default", "importance: too few trials", "epochs: ", "retrained: ", "files: "):
        assert sum(sentence.startswith(start_of_one) for sentence in said) == 1


def test_a_search_says_at_its_end_what_is_wrong_with_the_photos(tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "photos")
    source = min((photos / "train").glob("*/*"))
    shutil.copy(source, photos / "valid" / source.parent.name / "again.jpg")
    result = tune(photos, tmp_path / "search", *SPACE, "search.trials=2", "search.repeats=0")
    (said,) = [sentence for sentence in sentences(result) if sentence.startswith("data: ")]
    assert said.startswith("data: identical_across_splits: ")


def test_a_finished_search_is_read_and_not_run(eight: SearchResult, photos: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(heads_lockstep.Lockstep, "advance", lambda self: pytest.fail("a head was trained"))
    other = ("trainer.progress=true", "data.workers=1", "features.max_gb=5")  # they change no figure
    argv = (*SPACE, "search.trials=8", *other)
    again = tune(photos, eight.run_dir, *argv, train=lambda *_: pytest.fail("a run was started"))
    assert (again.best, again.gain, again.retrained) == (eight.best, eight.gain, eight.retrained)
    assert openings(eight.run_dir) == 1


def test_the_live_table_shows_the_best_and_the_time_left(eight: SearchResult) -> None:
    shown = table(eight.records[:6], 8, "valid/loss", elapsed=3.0, done_before=0)
    assert "trial 6 of 8" in str(shown.title)
    assert "about 1 s left" in str(shown.title)
    assert shown.row_count == 6


@pytest.mark.slow
def test_a_longer_search_goes_on_and_keeps_what_was_best(photos: Path, tmp_path: Path) -> None:
    first = tune(photos, tmp_path / "search", *SPACE, "search.trials=2", "search.repeats=0", "search.sampler=random")
    longer = tune(photos, tmp_path / "search", *SPACE, "search.trials=9", "search.repeats=0", "search.sampler=random")
    assert longer.records[:2] == first.records
    assert longer.best not in (0, 1)
    assert len(list(tmp_path.glob("search/best-*/bundle"))) == 1
    with pytest.raises(RunError, match=r"search of another configuration: model\.hidden=32 there and 16 here"):
        tune(photos, tmp_path / "search", *SPACE, "search.trials=9", "model.hidden=16")


# --- what goes wrong -------------------------------------------------------------------------------------------------

LRS = "optim.lr=choice(0.002,0.005,0.02,0.03,0.05,0.07,1e6,2e6,3e6)"


@pytest.mark.slow
def test_a_search_whose_time_is_up_ends_whole_and_goes_on_with_more(photos: Path, tmp_path: Path) -> None:
    found = tune(photos, tmp_path / "search", *SPACE, "search.trials=8", "search.repeats=0", "search.max_minutes=1e-4")
    # The four that TPE is asked for at first train together; they always begin.
    assert states(found.run_dir) == {"ok": 4}
    assert read_json(publish(found).with_name("search.json"))["left"] == found.left == 4  # type: ignore[union-attr]
    assert next(line for line in sentences(found) if line.startswith("left: ")).startswith(
        "left: 4 trials, for which there was no time (search.max_minutes; in a job also budget.usd, "
    )
    assert (found.run_dir / "best.yaml").exists()
    assert (found.retrained.run_dir / "bundle" / "manifest.json").exists()
    assert (read_search(found.run_dir).to_come, read_search(found.run_dir).finished) == (4, True)
    more = tune(photos, tmp_path / "search", *SPACE, "search.trials=8", "search.repeats=0", "search.max_minutes=60")
    assert (states(found.run_dir), more.left) == ({"ok": 8}, 0)
    assert not [line for line in sentences(more) if line.startswith("left: ")]


@pytest.mark.parametrize(
    ("minutes", "seconds", "longest", "is_up"),
    [
        (None, 1e9, 1e9, False),
        (10, 1e9, 0, False),  # the first trials begin whatever came before them
        (10, 500, 50, False),  # ends at 550, and the search at 600
        (10, 501, 50, True),
    ],
)
def test_trials_begin_while_they_and_the_end_have_time(
    minutes: float | None, seconds: float, longest: float, is_up: bool
) -> None:
    assert time_is_up(minutes, seconds, longest) is is_up


def test_three_that_diverge_and_one_that_raises_are_named_and_the_rest_go_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = heads_stack.Stack.__init__

    def raising(self: Any, trials: Sequence[Any], **given: Any) -> None:
        if any(trial.lr == 0.05 for trial in trials):
            raise RuntimeError("no memory for this head")
        init(self, trials, **given)

    monkeypatch.setattr(heads_stack.Stack, "__init__", raising)
    result = tune(photos, tmp_path / "search", "search=given", "search.sampler=grid", LRS)
    trials = read_json(result.run_dir / "study.json")["trials"]
    assert states(result.run_dir) == {"ok": 6, "diverged": 3, "failed": 1}
    assert {t["params"]["optim.lr"] for t in trials if t["state"] == "diverged"} == {1e6, 2e6, 3e6}
    assert all("times its first value" in t["reason"] for t in trials if t["state"] == "diverged")
    (failed,) = (t for t in trials if t["state"] == "failed")
    assert (failed["params"]["optim.lr"], failed["reason"]) == (0.05, "RuntimeError: no memory for this head")
    said = "\n".join(sentences(result))
    assert "trials: 10, 6 ok, 3 diverged, 1 failed" in said
    assert "failed (optim.lr=0.05): RuntimeError: no memory for this head" in said


def test_a_search_whose_trials_all_fail_says_so(photos: Path, tmp_path: Path) -> None:
    argv = ("search=given", "search.sampler=grid", "optim.lr=1e6", "seed=1,2,3")
    with pytest.raises(RunError, match=r"none of 4 trials ended well; \d of them: .*stayed above 3 times"):
        tune(photos, tmp_path / "search", *argv)
    assert states(tmp_path / "search") == {"diverged": 4}
    assert openings(tmp_path / "search") == 0
    page = (tmp_path / "search" / "report.html").read_text()
    assert "stayed above 3 times" in page
    assert "All 4 trials of this search have ended, and none of them well" in page
    assert "goes on" not in page


@pytest.mark.slow
def test_a_retrained_model_that_is_worse_is_reported_and_the_trial_kept(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(config: Config, *given: Any) -> Classifier:
        return build_classifier(changed(config, {"optim.lr": 10.0}), *given)

    monkeypatch.setattr(graft.trainer, "build_classifier", careless)
    result = tune(photos, tmp_path / "search", *SPACE, "search.trials=3")
    r = result.retrained
    assert r.kept == "trial"
    assert r.noise is not None
    assert r.value > r.trial_value + r.noise
    assert r.metrics["valid/loss"] == pytest.approx(r.trial_value, abs=1e-5)
    assert r.metrics["test/openings"] == 1  # of the ledger's two lines, which are of one run
    assert any("so the trial's model is kept" in sentence for sentence in sentences(result))
    assert (result.run_dir / "best" / "bundle" / "manifest.json").exists()


@pytest.mark.parametrize("objective", ["valid/loss", "valid/macro_f1"])  # heads together, and runs one by one
def test_without_seeds_the_better_of_trial_and_retrained_model_is_kept(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    def careless(config: Config, *given: Any) -> Classifier:
        best = config.run_dir.endswith("best")
        return build_classifier(changed(config, {"optim.lr": 1e-5}) if best else config, *given)

    monkeypatch.setattr(graft.trainer, "build_classifier", careless)
    argv = (*SPACE, f"search.objective={objective}", "search.trials=2", "search.repeats=0")
    result = tune(photos, tmp_path / "search", *argv)
    r = result.retrained
    assert (r.kept, r.noise) == ("trial", None)
    assert r.metrics[objective] == pytest.approx(r.trial_value, abs=1e-5)
    assert r.metrics[objective] != pytest.approx(r.value, abs=1e-3)
    assert any(": worse, so the trial's model is kept" in sentence for sentence in sentences(result))
    assert openings(result.run_dir) == 2  # of one run, which counts once
    assert r.metrics["test/openings"] == 1


def test_a_best_trial_that_cannot_be_trained_again_is_an_error(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = HeadResult(3, "failed", "no memory", None, (), 0.0, None)
    monkeypatch.setattr(HeadTrials, "_train", lambda *_, **__: [failed])
    trials = HeadTrials(composed(*tiny(photos, tmp_path / "search")))
    with pytest.raises(RunError, match="trial 3, the best, cannot be trained again: no memory"):
        trials.state(3, {"optim.lr": 0.1})


@pytest.mark.slow
def test_a_search_leaves_its_configuration_without_the_storage(photos: Path, tmp_path: Path) -> None:
    storage = f"search.storage=sqlite:///{tmp_path / 'study.db'}"
    argv = ("search.trials=1", "search.repeats=0", "search.objective=valid/accuracy")
    result = tune(photos, tmp_path / "search", *argv, storage)
    assert "study.db" not in "".join(p.read_text() for p in result.run_dir.rglob("*.*") if p.suffix in TEXTS)
    again = composed(f"overrides_from={result.run_dir / 'config.yaml'}")
    assert (again.search.objective, again.search.trials, again.search.storage) == ("valid/accuracy", 1, None)
    assert read_search(result.run_dir).maximize  # before publish() has written search.json


@pytest.mark.slow
def test_a_kill_while_the_trial_takes_the_worse_models_place_is_made_good(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(config: Config, *given: Any) -> Classifier:
        return build_classifier(changed(config, {"optim.lr": 10.0}), *given)

    def killed(path: Path, content: bytes) -> None:
        raise KeyboardInterrupt

    argv = (*SPACE, "search.trials=3")
    with monkeypatch.context() as patch:
        patch.setattr(graft.trainer, "build_classifier", careless)
        patch.setattr(retrain, "write_atomic", killed)  # of the trial's weights, when the worse run has moved away
        with pytest.raises(KeyboardInterrupt):
            tune(photos, tmp_path / "search", *argv)
    worse = tmp_path / "search" / "best-retrained-worse"
    assert worse.exists()
    for _ in range(2):  # the second finds all done
        result = tune(photos, tmp_path / "search", *argv)
        r = result.retrained
        assert (r.kept, r.run_dir.name) == ("trial", "best")
        assert r.value == read_json(worse / "metrics.json")["valid/loss"] > r.trial_value
        assert r.metrics["valid/loss"] == pytest.approx(r.trial_value, abs=1e-5)
        assert r.metrics["test/openings"] == 1


# --- stopping early --------------------------------------------------------------------------------------------------


def test_halving_stops_the_hopeless_and_keeps_the_best(photos: Path, tmp_path: Path) -> None:
    argv = ("search=given", "search.sampler=grid", "search.repeats=0", "optim.lr=choice(1e-6,2e-6,3e-6,0.02,5e-6,6e-6)")
    whole = tune(photos, tmp_path / "whole", *argv)
    halved = tune(photos, tmp_path / "halved", *argv, "search.pruner=halving")
    assert states(whole.run_dir) == {"ok": 7}
    # which ones depends on who came to a rung first, but a half of them had somebody to be compared with
    assert states(halved.run_dir)["pruned"] >= 1
    assert halved.records[0].outcome is not None
    assert halved.records[0].outcome.state == "ok"
    assert (halved.best, halved.retrained.value) == (whole.best, whole.retrained.value)
    assert sum(r.outcome.steps for r in halved.records if r.outcome) < sum(
        r.outcome.steps for r in whole.records if r.outcome
    )


def test_a_rung_without_its_storage_costs_no_trial(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(study: Study, step: int) -> dict[int, float]:
        raise StorageInternalError("lost")

    monkeypatch.setattr(Study, "reached", away)
    argv = ("search.trials=2", "search.pruner=halving", "search.repeats=0")
    result = tune(photos, tmp_path / "search", *SPACE, *argv)
    assert states(result.run_dir) == {"ok": 2}


def test_a_pruner_needs_an_objective_that_a_rung_knows(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"search\.pruner=halving judges by valid/loss or valid/accuracy"):
        tune(photos, tmp_path / "search", "search.pruner=halving", "search.objective=valid/ece")


# --- one by one ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_backbones_are_tried_one_by_one_and_one_that_raises_is_recorded(photos: Path, tmp_path: Path) -> None:
    argv = ("search=given", "search.sampler=grid", "search.objective=valid/macro_f1", "trainer.max_epochs=2")
    result = tune(photos, tmp_path / "search", *argv, "model.backbone=choice(squeezenet1_0, no_such_net)")
    trials = read_json(result.run_dir / "study.json")["trials"]
    assert [trial["state"] for trial in trials] == ["ok", "ok", "failed"]
    assert "no_such_net" in trials[2]["reason"]
    assert result.best == max((0, 1), key=lambda number: trials[number]["value"])
    metrics = read_json(result.run_dir / "trials" / "001" / "metrics.json")
    assert metrics["valid/macro_f1"] == trials[1]["value"]
    assert not any(name.startswith("test/") for name in metrics)
    assert openings(result.run_dir) == 1


@pytest.mark.slow
def test_unfrozen_runs_are_pruned_too(photos: Path, tmp_path: Path) -> None:
    argv = (
        "search=given",
        "search.sampler=grid",
        "search.pruner=median",
        "features.enabled=false",
        "data.augment=false",
    )
    lrs = "optim.lr=choice(0.02,0.011,0.012,0.013,1e-6)"
    result = tune(photos, tmp_path / "search", *argv, lrs, "trainer.max_epochs=2")
    trials = read_json(result.run_dir / "study.json")["trials"]
    assert (trials[5]["state"], trials[5]["params"]["optim.lr"]) == ("pruned", 1e-6)
    assert trials[5]["steps"] in (1, 2, 4, 8)  # the rungs of 10 steps
    assert trials[5]["reason"].startswith(f"stopped at step {trials[5]['steps']}, with valid/loss ")
    assert (trials[0]["state"], trials[0]["steps"]) == ("ok", 10)


@pytest.mark.parametrize(
    ("argv", "together"),
    [
        (["optim.lr=1,2", "model.hidden=8,16", "seed=1,2", "data.balance=none,loss"], True),
        (["features.views=0,1"], False),
        (["model.image_size=64,96"], False),
        (["seed=1,2", "features.views=1"], False),
        (["optim.lr=1,2", "features.views=1"], True),
        (["optim.lr=1,2", "model.unfreeze=all"], False),
        (["optim.lr=1,2", "features.enabled=false"], False),
        (["optim.lr=1,2", "trainer.precision=bf16"], False),
        (["optim.lr=1,2", "search.objective=valid/accuracy"], True),
        (["optim.lr=1,2", "search.objective=valid/ece"], False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_heads_train_together_where_they_see_the_same_features(argv: list[str], together: bool) -> None:
    line = take_sweeps(["data=demo", "search=given", *argv])
    config = composed(*line.argv)
    assert train_together(config, read_space(config, line)) is together


# --- the program -----------------------------------------------------------------------------------------------------


def spawn(cwd: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120"}
    command = [sys.executable, "-X", "importtime", str(ROOT / "tune.py"), *argv]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--help"], 0, "search.objective"),
        (["data=demo", "search.objective=test/loss"], 2, "objectives are on valid"),
        (["data=demo", "optim.lrr=interval(1, 2)"], 2, "the nearest: optim.lr"),
        (["data=demo", "optim.lr=interval(-1, 2)"], 2, "optim.lr=-1.0: accepted is a number above 0"),
        (["data=demo", "search=given"], 2, "search.space is empty"),
        (["data=demo", "-m"], 2, "a search sweeps without -m"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_mistakes_are_answered_without_torch(tmp_path: Path, argv: list[str], code: int, said: str) -> None:
    done = spawn(tmp_path, *argv)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert not {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()} & {"torch", "optuna", "numpy"}
    assert list(tmp_path.iterdir()) == []


def begin(photos: Path, run_dir: Path, *argv: str) -> subprocess.Popen[str]:
    return start(tiny(photos, run_dir, *argv), script="tune.py")


LONG = (
    "search.trials=20",
    "search.sampler=random",
    "trainer.max_epochs=40",
    "trainer.patience=null",
    "search.repeats=0",
)


@pytest.mark.slow
def test_five_kills_of_a_search_lose_and_double_nothing(photos: Path, tmp_path: Path) -> None:
    whole = tune(photos, tmp_path / "whole" / "search", *LONG)
    run_dir, rng = tmp_path / "killed" / "search", random.Random(0)
    journal = run_dir / "study.journal"
    for _ in range(5):
        process = begin(photos, run_dir, *LONG)
        wait_for(journal, process)
        size = journal.stat().st_size
        while journal.stat().st_size == size and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = begin(photos, run_dir, *LONG)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    trials = read_json(run_dir / "study.json")["trials"]
    expected = read_json(whole.run_dir / "study.json")["trials"]
    assert [trial["number"] for trial in trials] == list(range(20))
    assert [trial["params"] for trial in trials] == [trial["params"] for trial in expected]
    assert read_json(run_dir / "study.json")["best"] == whole.best
    told = [line for line in journal.read_text().splitlines() if '"state":1' in line or '"state":2' in line]
    assert len({json.loads(line)["trial_id"] for line in told}) == len(told)
    assert f"next: python train.py overrides_from={run_dir}/best.yaml" in out


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_search_that_is_told_to_stop_goes_on_later(photos: Path, tmp_path: Path, signum: int, code: int) -> None:
    run_dir = tmp_path / "search"
    process = begin(photos, run_dir, *LONG, "trainer.max_epochs=400")
    wait_for(run_dir / "study.journal", process)
    time.sleep(5)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "goes on from here" in err) == (code, True), err
    states_left = Counter(
        json.loads(line).get("state") for line in (run_dir / "study.journal").read_text().splitlines()
    )
    assert states_left[4] >= 1  # WAITING: put back for the next


@pytest.mark.slow
def test_two_searches_in_one_directory_share_it(photos: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "search"
    argv = (*SPACE, "search.trials=40", "search.sampler=random", "trainer.max_epochs=20", "search.repeats=2")
    both = [begin(photos, run_dir, *argv) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    trials = read_json(run_dir / "study.json")["trials"]
    assert [trial["number"] for trial in trials] == list(range(40))
    assert openings(run_dir) == 1


@pytest.mark.slow
def test_the_first_command_of_the_readme_runs_as_written(tmp_path: Path) -> None:
    (tmp_path / "conf").symlink_to(CONF)
    done = spawn(tmp_path, "search.trials=8", "data=demo")
    assert done.returncode == 0, done.stderr[-2000:]
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert states(run_dir).total() == 8
    assert "toy figures" in done.stdout


@pytest.mark.slow
@pytest.mark.real_data
def test_the_originals_search_repeats_with_another_seed(tmp_path: Path) -> None:
    where = (
        *("data=folder", f"data.root={REAL_DATA / 'dogs'}", "model.backbone=mobilenet_v2"),
        *(f"model.weights={REAL_DATA / 'weights' / 'mobilenet_v2.pth'}", f"features.cache_dir={tmp_path / 'cache'}"),
    )
    process = start(["search=original", *where, f"run_dir={tmp_path / 'search'}"], script="tune.py")
    _, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    study = read_json(tmp_path / "search" / "study.json")
    assert len(study["trials"]) == 8
    assert all(set(trial["params"]) == set(study["trials"][0]["params"]) for trial in study["trials"])
    losses = [outcome["value"] for outcome in read_json(tmp_path / "search" / "repeats.json")["of_best"]]
    again = train(
        composed(f"overrides_from={tmp_path / 'search' / 'best.yaml'}", "seed=77", f"run_dir={tmp_path / 'again'}")
    )
    assert abs(again.metrics["valid/loss"] - statistics.mean(losses)) < 3 * statistics.stdev(losses)
