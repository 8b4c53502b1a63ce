"""The jobs of a sweep: at most launcher.max_parallel at a time, all followed, each told."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from graft.errors import CloudError, RunError
from graft.launcher import finish_sweep, stopping
from graft.launcher.__main__ import main
from graft.launcher.cloud import conclude_member
from graft.launcher.plan import Others
from graft.launcher.stopping import heed_stop, mark_stopped
from graft.launcher.sweep import follow_sweep, members, others_of, wait_for_turn
from graft.launcher.ticket import Ticket, read_ticket, write_ticket
from tests.s3server import CREDENTIALS, forget_account
from tests.scripted import ABSENT, BROKEN, DENIED, THROTTLED, Answer, Script, training


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    forget_account(monkeypatch)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return Script(monkeypatch)


def submitted(sweep_dir: Path, *names: str, **more: Any) -> None:
    for number, name in enumerate(names):
        ticket = Ticket(name, "training", "train", "us-east-1", "s3://b/j", "s3://b/j/run", "ml.m5.large", 1, 0.36)
        write_ticket(sweep_dir / str(number), Ticket(**{**vars(ticket), "state": "submitted", **more}))


def states(script: Script, *answers: Answer) -> None:
    script.answer("DescribeTrainingJob", *answers)


def test_the_next_job_waits_for_one_to_end(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(tmp_path, "one", "two")
    going, done = training("InProgress", "Training"), training("Completed", BillableTimeInSeconds=100)
    states(script, going, going, going, done)  # both are asked twice
    pauses: list[float] = []
    wait_for_turn(tmp_path / "2", 2, pause=pauses.append)
    assert len(pauses) == 1
    ended = read_ticket(tmp_path / "1")
    assert ended is not None
    assert ended.state == "Completed"
    assert ended.actual_usd == pytest.approx(0.01)
    assert capsys.readouterr().err == (
        "2: waits for one of 2 jobs to end (launcher.max_parallel=2)\n1: two: Completed, $0.01\n"
    )


def test_a_job_that_was_never_created_takes_no_place(script: Script, tmp_path: Path) -> None:
    submitted(tmp_path, "one", state="submitting")
    states(script, ABSENT)
    wait_for_turn(tmp_path / "1", 1, pause=lambda seconds: pytest.fail("waited"))
    assert others_of(tmp_path / "1", 2) == Others(0.0, to_come=2)  # it may be submitted again


def test_a_free_place_is_taken_at_once(script: Script, tmp_path: Path) -> None:
    submitted(tmp_path, "one")
    states(script, training("InProgress"))
    wait_for_turn(tmp_path / "1", 2, pause=lambda seconds: pytest.fail("waited"))


def test_every_job_is_handed_over_as_it_ends(script: Script, tmp_path: Path) -> None:
    submitted(tmp_path, "one", "two")
    states(script, training("InProgress"), training("Failed", FailureReason="no photos"), training("Completed"))
    ended: list[tuple[str, str]] = []
    follow_sweep(tmp_path, lambda ticket, run: ended.append((run.name, ticket.state)), pause=lambda seconds: None)
    assert ended == [("1", "Failed"), ("0", "Completed")]


def test_a_resumed_sweep_follows_the_new_job_of_a_failed_run(script: Script, tmp_path: Path) -> None:
    submitted(tmp_path, "one", "two")
    (tmp_path / "0" / "run.json").write_text('{"id": "1", "state": "failed"}')
    (tmp_path / "1" / "run.json").write_text('{"id": "2", "state": "failed"}')
    states(script, training("Completed"))
    ended: list[tuple[str, str]] = []
    follow_sweep(tmp_path, lambda ticket, run: ended.append((ticket.name, ticket.state)), pause=lambda seconds: None)
    assert ended == [("one", "Completed"), ("two", "Completed")]


def test_a_completed_job_is_fetched_until_its_run_is_here(script: Script, tmp_path: Path) -> None:
    submitted(tmp_path, "one", "two", state="Completed")
    (tmp_path / "0" / "run.json").write_text('{"id": "1", "state": "failed"}')  # it could not be fetched
    (tmp_path / "1" / "run.json").write_text('{"id": "2", "state": "finished"}')
    ended: list[str] = []
    follow_sweep(tmp_path, lambda ticket, run: ended.append(ticket.name))
    assert ended == ["one"]
    assert script.asked["DescribeTrainingJob"] == 0


def test_a_member_that_failed_is_told_and_the_sweep_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graft.launcher.cloud.fetch_run", lambda location, run_dir: 0)
    submitted(tmp_path, "one", state="Failed", reason="no photos")
    conclude_member(members(tmp_path)[tmp_path / "0"], tmp_path / "0")
    assert "0: job one failed: no photos; nothing of it runs any more" in capsys.readouterr().err
    state = json.loads((tmp_path / "0" / "run.json").read_text())
    assert state["state"] == "failed"
    assert state["reason"].startswith("job one failed: no photos")


def interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


def going_on(sweep_dir: Path, names: str) -> str:
    return (
        f"of this sweep go on and are billed: {names}; watch them with `python -m graft.launcher follow {sweep_dir}`, "
        f"end them with `python -m graft.launcher stop {sweep_dir}`\n"
    )


def test_ctrl_c_while_pausing_names_all_that_goes_on(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(tmp_path, "one", "two")
    states(script, training("InProgress"))
    with pytest.raises(KeyboardInterrupt):
        follow_sweep(tmp_path, lambda ticket, run: None, pause=interrupt)
    assert capsys.readouterr().err.endswith(going_on(tmp_path, "one, two"))


def test_a_signal_names_all_that_goes_on(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(tmp_path, "one", "two")
    states(script, training("InProgress"))
    with pytest.raises(SystemExit) as ended:
        follow_sweep(tmp_path, lambda ticket, run: None, pause=lambda seconds: os.kill(os.getpid(), signal.SIGTERM))
    assert ended.value.code == 143
    assert capsys.readouterr().err.endswith(going_on(tmp_path, "one, two"))


def test_ctrl_c_while_asking_names_all_that_goes_on(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(tmp_path, "one", "two")
    script.answer("DescribeTrainingJob", interrupt)
    with pytest.raises(KeyboardInterrupt):
        follow_sweep(tmp_path, lambda ticket, run: None)
    assert capsys.readouterr().err == going_on(tmp_path, "one, two")
    with pytest.raises(KeyboardInterrupt):
        wait_for_turn(tmp_path / "2", 2)
    assert capsys.readouterr().err == going_on(tmp_path, "one, two")


def test_ctrl_c_while_fetching_names_what_goes_on(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(tmp_path, "one", "two")
    states(script, training("Completed"))
    with pytest.raises(KeyboardInterrupt):
        follow_sweep(tmp_path, interrupt)
    assert capsys.readouterr().err.endswith(going_on(tmp_path, "two"))


def test_denied_names_the_job_that_goes_on(script: Script, tmp_path: Path) -> None:
    submitted(tmp_path, "one", "two")
    states(script, DENIED)
    with pytest.raises(CloudError, match=r"one goes on and is billed.*of this sweep go on and are billed: one, two"):
        follow_sweep(tmp_path, lambda ticket, run: None)


@pytest.mark.parametrize("answer", [THROTTLED, BROKEN])
def test_a_job_of_which_nobody_can_say_whether_it_is_there_names_all_that_go_on(
    script: Script, tmp_path: Path, answer: Answer
) -> None:
    submitted(tmp_path, "one", "two")
    submitted(tmp_path, "one", state="submitting")
    states(script, answer)
    unknown = (
        r"job one: AWS answered .*; whether one was created is not known, and it would be billed: .*; of this sweep"
    )
    with pytest.raises(CloudError, match=unknown + " go on and are billed: one, two"):
        follow_sweep(tmp_path, lambda ticket, run: None)
    with pytest.raises(CloudError, match=unknown + " go on and are billed: one, two"):
        wait_for_turn(tmp_path / "2", 2)


def test_a_sweep_that_is_not_waited_for_says_how_to_follow_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(tmp_path, "one", "two", followed=False)
    assert not finish_sweep(tmp_path)
    assert "of this sweep go on and are billed: one, two" in capsys.readouterr().err


def test_a_sweep_that_is_stopped_elsewhere_submits_no_more(script: Script, tmp_path: Path) -> None:
    heed_stop(tmp_path / "0")  # as the command does for each member
    submitted(tmp_path, "one", "two")
    states(script, training("InProgress"))
    script.answer("StopTrainingJob", (200, {}))
    with pytest.raises(RunError) as caught:
        wait_for_turn(tmp_path / "2", 2, pause=lambda seconds: main(["stop", str(tmp_path)]))
    assert str(caught.value) == (
        f"run_dir={tmp_path / '2'}: its sweep was stopped (`python -m graft.launcher stop {tmp_path}`), so no further "
        "job of it is created; the same command with the same run_dir goes on with it"
    )
    with pytest.raises(RunError):
        heed_stop(tmp_path / "3")
    heed_stop(tmp_path.parent / "alone" / "0")


def test_a_sweep_that_was_stopped_before_goes_on_with_the_same_command(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(tmp_path, "one", "two")
    states(script, training("Stopped"))
    main(["stop", str(tmp_path)])
    assert capsys.readouterr().err.startswith(f"no further job of {tmp_path} is created; the command that started")
    monkeypatch.setattr(stopping, "_BEFORE", {})  # another process
    heed_stop(tmp_path / "0")
    wait_for_turn(tmp_path / "2", 2)
    mark_stopped(tmp_path)
    with pytest.raises(RunError):
        wait_for_turn(tmp_path / "2", 2)


def test_a_sweep_that_was_only_planned_has_no_runs_to_show(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    assert not finish_sweep(tmp_path)
    (tmp_path / "0" / "run.json").write_text("{}")
    assert finish_sweep(tmp_path)


def test_what_the_others_cost_counts_against_the_budget(tmp_path: Path) -> None:
    submitted(tmp_path, "one", "two", "three", planned_usd=(0.1, 0.5), limit_usd=0.7)
    ticket = read_ticket(tmp_path / "1")
    assert ticket is not None
    write_ticket(tmp_path / "1", Ticket(**{**vars(ticket), "state": "Completed", "actual_usd": 0.2}))
    others = others_of(tmp_path / "2", 5)
    assert others.usd == pytest.approx(0.7 + 0.2)  # what goes on may cost what its limits allow
    assert others.to_come == 3
    assert others_of(tmp_path / "2", None).to_come is None
