"""A command with trainer=sagemaker_*: plan, submit, follow, fetch, against moto's server, whose jobs end at once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from graft.command import Spread, value_of
from graft.config import Config, changed
from graft.errors import CloudError, ConfigError, RunError
from graft.launcher import calls, cloud, follow, submit
from graft.launcher.__main__ import main
from graft.launcher.cloud import Work, run_in_cloud, tune_in_cloud
from graft.launcher.job import Entry
from graft.launcher.presence import confirmed, was_created
from graft.launcher.stopping import mark_stopped
from graft.launcher.ticket import Ticket, read_ticket, write_ticket
from tests.composing import composed
from tests.s3server import client, new_bucket, running_server, use_server
from tests.scripted import ABSENT, BROKEN, DENIED, THROTTLED, Answer, Script, training

NAME = "graft-train-20261127-120000-abcd"
ROLE = "arn:aws:iam::123456789012:role/graft"
METRICS = {
    "valid/loss": 0.5,
    "valid/accuracy": 0.9,
    "valid/accuracy_low": 0.8,
    "valid/accuracy_high": 0.95,
    "valid/top5_accuracy": 1.0,
    "valid/images": 10,
    "time/features_s": 1.0,
    "time/fit_s": 1.0,
    "time/total_s": 3.0,
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_server() as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    use_server(monkeypatch, server)
    monkeypatch.setattr(submit, "new_name", lambda kind: NAME)
    monkeypatch.setattr(calls, "LONGEST_PAUSE_S", 0.0)
    monkeypatch.setattr(follow, "LATE_LINES_S", 0.0)
    calls.client.cache_clear()
    name = new_bucket(server, "results")
    put(server, "photos/train/Akita/1.jpg", "a photo")
    return name


@pytest.fixture
def script(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Script:
    """AWS as the test wants it; what it does not script, moto answers."""
    script = Script(monkeypatch)
    script.answer("CreateTrainingJob", (200, {"TrainingJobArn": "arn"}))
    return script


@cache
def account() -> Config:
    """What all tests share, composed once."""
    named = (f"launcher.role={ROLE}", "launcher.bucket=results", "launcher.region=us-east-1", "launcher.image=here:1")
    return composed("trainer=sagemaker_gpu", "data=folder", "data.root=s3://results/photos", *named)


def in_cloud(tmp_path: Path, *more: str) -> Config:
    given = (override.partition("=") for override in more)
    places = {"run_dir": str(tmp_path / "run"), "features.cache_dir": str(tmp_path / "cache")}
    return changed(account(), places | {key: value_of(key, text) for key, _, text in given})


def put(server: str, key: str, content: object) -> None:
    client(server).put_object(Bucket="results", Key=key, Body=json.dumps(content).encode())


def leave_run(server: str) -> None:
    """What a job that ended well has kept."""
    run = f"graft/jobs/{NAME}/checkpoints/run"
    put(server, f"{run}/metrics.json", METRICS)
    put(server, f"{run}/config.yaml", "of the container")
    put(server, f"{run}/run.json", {"id": "1", "state": "finished"})
    client(server).put_object(Bucket="results", Key=f"{run}/report.html", Body=b"<header><!-- job --></header>")


def failure_of(config: Config) -> str:
    with pytest.raises(CloudError) as caught:
        run_in_cloud(Work(config))
    return str(caught.value)


def test_a_run_is_submitted_followed_and_fetched(server: str, bucket: str, tmp_path: Path) -> None:
    leave_run(server)
    ticket = run_in_cloud(Work(in_cloud(tmp_path)))
    assert ticket is not None
    assert ticket.state == "Completed"
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == METRICS
    assert "root: s3://results/photos" in (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(RunError, match="holds a finished run"):
        run_in_cloud(Work(in_cloud(tmp_path)))


def test_throttling_and_faults_of_the_service_are_sat_out(
    server: str, script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_run(server)
    silence = [THROTTLED] * 8 + [BROKEN] * 8  # more than one call tries again
    done = training("Completed", BillableTimeInSeconds=90)
    script.answer("DescribeTrainingJob", *silence, training("InProgress", "Training"), *silence, done)
    ticket = run_in_cloud(Work(in_cloud(tmp_path)))
    assert ticket is not None
    assert (ticket.state, ticket.billed_seconds) == ("Completed", 90)
    assert ticket.actual_usd == pytest.approx(90 / 3600 * 0.7364)
    err = capsys.readouterr().err
    told = f"job {NAME}: AWS answered ThrottlingException to each of 6 attempts; try again in some minutes"
    assert err.count(f"{told}; still waiting") == 2
    assert "billed: 1.5 minutes, $0.02; planned: " in err
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.startswith(
        f'<header><p class="meta">SageMaker job {NAME} on 1 x ml.g4dn.xlarge; billed: 1.5 minutes, $0.02'
    )


@pytest.mark.parametrize("answer", [THROTTLED, BROKEN])
def test_a_job_that_was_not_created_is_told(script: Script, tmp_path: Path, answer: tuple[int, dict[str, str]]) -> None:
    script.answer("CreateTrainingJob", answer)
    calls.client.cache_clear()
    script.answer("CreateTrainingJob", answer)
    script.answer("DescribeTrainingJob", ABSENT)
    said = failure_of(in_cloud(tmp_path))
    code = answer[1]["__type"] if answer is THROTTLED else "InternalFailure"
    assert said == (
        f"creating {NAME}: AWS answered {code} to each of 6 attempts; try again in some minutes; no job was created; "
        f"what was sent stays in s3://results/graft/jobs/{NAME}/source/source.tar.gz (S3 storage is billed)"
    )
    assert not_billed(tmp_path)


def not_billed(tmp_path: Path) -> bool:
    ticket = read_ticket(tmp_path / "run")
    assert ticket is not None
    return (ticket.state, ticket.reason, ticket.actual_usd) == ("Failed", "it was never created", 0.0)


def test_a_job_that_is_refused_is_not_said_to_be_billed(script: Script, tmp_path: Path) -> None:
    calls.client.cache_clear()
    script.answer("CreateTrainingJob", DENIED)
    weights = tmp_path / "mine.pth"
    weights.write_bytes(b"weights")
    assert failure_of(in_cloud(tmp_path, f"model.weights={weights}")).endswith(
        f"; no job was created; what was sent stays in s3://results/graft/jobs/{NAME}/source/source.tar.gz and "
        "s3://results/graft/weights/63f4f1e9b725370f459720575cd5f953/mine.pth (S3 storage is billed)"
    )
    assert not_billed(tmp_path)


def test_a_job_whose_creation_was_not_confirmed_is_followed(server: str, script: Script, tmp_path: Path) -> None:
    leave_run(server)
    calls.client.cache_clear()
    script.answer("CreateTrainingJob", BROKEN)
    script.answer("DescribeTrainingJob", training("Completed"))
    ticket = run_in_cloud(Work(in_cloud(tmp_path)))
    assert ticket is not None
    assert ticket.state == "Completed"


@pytest.mark.parametrize("kind", ["training", "tuning"])
def test_a_job_whose_request_arrives_late_is_not_taken_for_missing(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setattr(calls, "LATE_S", 30.0)
    ticket = Ticket(NAME, kind, "train", "us-east-1", "s3://b/j", "s3://b/j/run", "ml.m5.large", 1)
    operation = "DescribeTrainingJob" if kind == "training" else "DescribeHyperParameterTuningJob"
    limits = {"ResourceLimits": {"MaxParallelTrainingJobs": 1}}
    tuned = {"HyperParameterTuningJobStatus": "InProgress", "HyperParameterTuningJobConfig": limits}
    pauses: list[float] = []
    script.answer(operation, ABSENT, ABSENT, training("InProgress") if kind == "training" else (200, tuned))
    assert was_created(ticket, CloudError("lost"), pauses.append)
    assert pauses == [1.0, 1.0]
    calls.client.cache_clear()
    script.answer(operation, ABSENT)
    assert not was_created(ticket, CloudError("lost"), pauses.append)
    assert len(pauses) == 2 + 30
    # Of one whose command was killed, as long as its request may still be on its way.
    write_ticket(tmp_path, ticket)
    assert not confirmed(ticket, tmp_path, pauses.append).was_created
    assert 2 + 30 + 25 <= len(pauses) <= 2 + 30 + 30
    os.utime(tmp_path / "job.json", (0, 0))
    assert not confirmed(ticket, tmp_path, lambda seconds: pytest.fail("waited")).was_created


def test_a_job_of_which_nobody_knows_whether_it_was_created_is_mentioned(script: Script, tmp_path: Path) -> None:
    calls.client.cache_clear()
    script.answer("CreateTrainingJob", BROKEN)
    script.answer("DescribeTrainingJob", DENIED)
    said = failure_of(in_cloud(tmp_path))
    assert said.endswith(
        f"whether {NAME} was created is not known, and it would be billed: `python -m graft.launcher list "
        "launcher.region=us-east-1` shows it"
    )


def test_a_job_that_failed_says_why_and_what_remains(script: Script, tmp_path: Path) -> None:
    script.answer(
        "DescribeTrainingJob", training("Failed", FailureReason="AlgorithmError: no photos", BillableTimeInSeconds=60)
    )
    assert failure_of(in_cloud(tmp_path)) == (
        f"job {NAME} failed: AlgorithmError: no photos; nothing of it runs any more, its files remain in "
        f"s3://results/graft/jobs/{NAME}/ (S3 storage is billed); the same command with "
        f"run_dir={tmp_path / 'run'} goes on from its checkpoints"
    )
    ticket = read_ticket(tmp_path / "run")
    assert ticket is not None
    assert (ticket.state, ticket.billed_seconds) == ("Failed", 60)


def test_the_same_command_goes_on_with_the_checkpoints_of_a_failed_job(
    server: str, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.answer("DescribeTrainingJob", training("Stopped", "MaxRuntimeExceeded"))
    assert "stopped: it ran out of the time that launcher.max_hours or budget.usd allows" in failure_of(
        in_cloud(tmp_path)
    )
    leave_run(server)
    calls.client.cache_clear()
    script.answer("DescribeTrainingJob", training("Completed"))
    monkeypatch.setattr(submit, "new_name", lambda kind: "graft-train-2")
    sent: list[bytes] = []
    service = calls.client("sagemaker", "us-east-1")
    service.meta.events.register(
        "before-send.sagemaker.CreateTrainingJob", lambda request, **_: sent.append(request.body)
    )
    ticket = run_in_cloud(Work(in_cloud(tmp_path)))
    assert ticket is not None
    assert ticket.name == "graft-train-2"
    assert json.loads(sent[0])["CheckpointConfig"]["S3Uri"] == f"s3://results/graft/jobs/{NAME}/checkpoints"
    assert ticket.results == f"s3://results/graft/jobs/{NAME}/checkpoints/run"


def test_a_budget_is_of_all_jobs_of_a_run(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    an_hour, budget = 0.7364, ("budget.usd=2", "data.images=100")
    script.answer("DescribeTrainingJob", training("Failed", BillableTimeInSeconds=3600))
    failure_of(in_cloud(tmp_path, *budget))
    calls.client.cache_clear()
    sent: list[bytes] = []
    script.answer("DescribeTrainingJob", training("Failed", BillableTimeInSeconds=3600))
    calls.client("sagemaker", "us-east-1").meta.events.register(
        "before-send.sagemaker.CreateTrainingJob", lambda request, **_: sent.append(request.body)
    )
    failure_of(in_cloud(tmp_path, *budget))
    left = int((2 - an_hour) / an_hour * 3600)
    assert json.loads(sent[0])["StoppingCondition"]["MaxRuntimeInSeconds"] == left
    assert "; jobs before it: $0.74" in capsys.readouterr().err
    ticket = read_ticket(tmp_path / "run")
    assert ticket is not None
    assert ticket.most_usd == pytest.approx(2 * an_hour)
    with pytest.raises(ConfigError, match=r"budget\.usd=1\.5: .*, 1\.47 of it for other jobs of this run or sweep"):
        run_in_cloud(Work(in_cloud(tmp_path, "budget.usd=1.5", "data.images=100")))


def test_a_search_whose_time_was_over_goes_on_with_a_larger_budget(
    server: str, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(server, f"graft/jobs/{NAME}/checkpoints/run/search.json", {"left": 3})
    script.answer("DescribeTrainingJob", training("Completed", BillableTimeInSeconds=3600))
    first, second = (Work(in_cloud(tmp_path, f"budget.usd={usd}"), Entry.tune, trials=8) for usd in (0.8, 2))
    run_in_cloud(first)
    with pytest.raises(ConfigError, match=r"budget\.usd=0\.8: .*, 0\.74 of it for other jobs of this run or sweep"):
        run_in_cloud(first)
    calls.client.cache_clear()
    sent: list[dict[str, Any]] = []

    def created(request: dict[str, Any]) -> Answer:
        sent.append(request)
        return 200, {"TrainingJobArn": "arn"}

    script.reply("CreateTrainingJob", created)
    script.answer("DescribeTrainingJob", training("Completed", BillableTimeInSeconds=60))
    put(server, f"graft/jobs/{NAME}/checkpoints/run/search.json", {"left": 0})
    monkeypatch.setattr(submit, "new_name", lambda kind: "graft-tune-2")
    run_in_cloud(second)
    assert sent[0]["CheckpointConfig"]["S3Uri"] == f"s3://results/graft/jobs/{NAME}/checkpoints"
    run_in_cloud(second)  # nothing is left: it is fetched once more
    assert len(sent) == 1


def test_the_limits_of_the_jobs_of_a_sweep_are_within_the_budget_together(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "optim.lr=0.001,0.003,0.01", "-m"])
    monkeypatch.setattr(cloud, "wait_for_turn", lambda member, most: None)
    seconds: list[int] = []

    def created(request: dict[str, Any]) -> Answer:
        seconds.append(request["StoppingCondition"]["MaxRuntimeInSeconds"])
        return 200, {"TrainingJobArn": "arn"}

    calls.client.cache_clear()
    script.reply("CreateTrainingJob", created)
    for member in (tmp_path / "run" / str(number) for number in range(3)):
        monkeypatch.setattr(cloud, "sweep_member", lambda member=member: member)
        run_in_cloud(Work(in_cloud(tmp_path, "budget.usd=2", "data.images=100", f"run_dir={member}")))
    assert sum(seconds) * 0.7364 / 3600 == pytest.approx(2, abs=0.001)
    assert max(seconds) - min(seconds) <= 1


def test_a_sweep_that_is_stopped_while_a_member_is_sent_creates_no_job(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = tmp_path / "run" / "0"
    monkeypatch.setattr("sys.argv", ["train.py", "optim.lr=0.001,0.003", "-m"])
    monkeypatch.setattr(cloud, "sweep_member", lambda: member)

    def write_and_stop(run_dir: Path, ticket: Ticket) -> Ticket:
        if ticket.state == "submitting":  # from now on, whoever stops the sweep meets the ticket
            mark_stopped(member.parent)
        return write_ticket(run_dir, ticket)

    monkeypatch.setattr(submit, "write_ticket", write_and_stop)
    with pytest.raises(RunError, match="its sweep was stopped"):
        run_in_cloud(Work(in_cloud(tmp_path, f"run_dir={member}")))
    ticket = read_ticket(member)
    assert ticket is not None
    assert (ticket.was_created, ticket.actual_usd) == (False, 0.0)
    assert script.asked["CreateTrainingJob"] == 0
    with pytest.raises(RunError, match="its sweep was stopped"):  # nothing is sent for the next one
        run_in_cloud(Work(in_cloud(tmp_path, f"run_dir={tmp_path / 'run' / '1'}")))
    assert not (tmp_path / "run" / "1").exists()


def test_a_stopped_tuning_job_leaves_no_checkpoints_to_a_training_job(
    server: str, script: Script, tmp_path: Path
) -> None:
    leave_run(server)
    ticket = Ticket(
        "graft-tune-1", "tuning", "tune", "us-east-1", "s3://b/j", "s3://results/graft/jobs", "ml.m5.large", 1
    )
    write_ticket(tmp_path / "run", replace(ticket, state="Stopped"))
    script.answer("ListTrainingJobsForHyperParameterTuningJob", (200, {"TrainingJobSummaries": []}))
    script.answer("DescribeTrainingJob", training("Completed"))
    found = run_in_cloud(Work(in_cloud(tmp_path)))
    assert found is not None
    assert found.results == f"s3://results/graft/jobs/{NAME}/checkpoints/run"


def test_a_killed_client_comes_back_to_its_job(server: str, script: Script, tmp_path: Path) -> None:
    assert run_in_cloud(Work(in_cloud(tmp_path, "launcher.wait=false"))) is None
    leave_run(server)
    script.answer("DescribeTrainingJob", training("Completed"))
    ticket = run_in_cloud(Work(in_cloud(tmp_path)))
    assert ticket is not None
    assert ticket.name == NAME
    assert script.asked["CreateTrainingJob"] == 1


def test_another_configuration_does_not_follow_the_job(script: Script, tmp_path: Path) -> None:
    run_in_cloud(Work(in_cloud(tmp_path, "launcher.wait=false")))
    with pytest.raises(RunError, match=f"is of job {NAME} with another configuration: seed=0 there and 1 here"):
        run_in_cloud(Work(in_cloud(tmp_path, "seed=1")))


def test_access_denied_while_watching_leaves_no_job_unmentioned(script: Script, tmp_path: Path) -> None:
    script.answer("DescribeTrainingJob", training("InProgress", "Training"), DENIED)
    said = failure_of(in_cloud(tmp_path))
    assert said.startswith(
        f"job {NAME}: denied; `python -m graft.launcher policy` prints what this account has to allow"
    )
    assert f"{NAME} goes on and is billed; watch it and fetch its run with" in said


def test_a_lost_log_does_not_end_the_watching(
    server: str, script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_run(server)
    script.answer("DescribeTrainingJob", training("InProgress", "Training"), training("Completed"))
    script.answer("DescribeLogStreams", DENIED, service="logs")
    assert run_in_cloud(Work(in_cloud(tmp_path))) is not None
    assert capsys.readouterr().err.count("watching goes on without it") == 1


def page(token: str, *lines: str) -> Answer:
    """What GetLogEvents gives."""
    return 200, {"events": [{"message": line} for line in lines], "nextForwardToken": token}


def test_no_line_of_a_log_is_missed(
    server: str, script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_run(server)
    script.answer("DescribeTrainingJob", training("Completed"))
    script.answer("DescribeLogStreams", (200, {"logStreams": [{"logStreamName": f"{NAME}/algo-1-1"}]}), service="logs")
    # A page may be empty amid the stream, and the last lines come after the job has ended.
    first_look = page("1", "first"), page("2"), page("3", "second"), page("3")
    script.answer("GetLogEvents", *first_look, page("4", "late"), page("4"), service="logs")
    assert run_in_cloud(Work(in_cloud(tmp_path))) is not None
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line in ("first", "second", "late")] == ["first", "second", "late"]


def test_lines_of_several_machines_say_which(
    server: str, script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_run(server)
    script.answer("DescribeTrainingJob", training("Completed"))
    streams = [{"logStreamName": f"{NAME}/algo-{number}-1712345678"} for number in (1, 12)]
    script.answer("DescribeLogStreams", (200, {"logStreams": streams}), service="logs")
    script.answer("GetLogEvents", page("1", "one"), page("1"), page("2", "twelve"), page("2"), service="logs")
    assert run_in_cloud(Work(in_cloud(tmp_path))) is not None
    assert {"algo-1 | one", "algo-12 | twelve"} <= set(capsys.readouterr().err.splitlines())


def test_ctrl_c_without_a_terminal_only_stops_watching(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> tuple[int, dict[str, str]]:
        raise KeyboardInterrupt

    script.answer("DescribeTrainingJob", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_in_cloud(Work(in_cloud(tmp_path)))
    assert f"{NAME} goes on and is billed; watch it" in capsys.readouterr().err


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_while_watching_leaves_no_job_unmentioned(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], signum: signal.Signals, code: int
) -> None:
    def told() -> Answer:
        os.kill(os.getpid(), signum)
        return training("InProgress")

    script.answer("DescribeTrainingJob", told)
    with pytest.raises(SystemExit) as ended:
        run_in_cloud(Work(in_cloud(tmp_path)))
    assert ended.value.code == code
    assert f"{NAME} goes on and is billed; watch it" in capsys.readouterr().err
    assert signal.getsignal(signum) == signal.SIG_DFL


@pytest.mark.parametrize(("signum", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_while_a_job_is_created_says_that_it_may_be_billed(
    signum: int, ends: type[BaseException], script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> Answer:
        signal.raise_signal(signum)
        return BROKEN

    calls.client.cache_clear()
    script.answer("CreateTrainingJob", told)
    with pytest.raises(ends):
        run_in_cloud(Work(in_cloud(tmp_path)))
    assert f"interrupted while the job was created; if it was, {NAME} goes on and is billed" in capsys.readouterr().err


class Terminal:
    """A person who answers."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self.answers.pop(0) + "\n"


def interrupted_once(script: Script, *then: tuple[int, dict[str, object]]) -> None:
    def interrupt() -> tuple[int, dict[str, str]]:
        raise KeyboardInterrupt

    script.answer("DescribeTrainingJob", interrupt, *then)


def test_ctrl_c_can_stop_the_job(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("s"))
    interrupted_once(script, training("Stopping"), training("Stopped", BillableTimeInSeconds=30))
    script.answer("StopTrainingJob", (200, {}))
    assert failure_of(in_cloud(tmp_path)).startswith(f"job {NAME} stopped; nothing of it runs any more")
    assert script.asked["StopTrainingJob"] == 1


def test_a_job_that_cannot_be_stopped_is_not_lost(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("s"))
    interrupted_once(script, training("InProgress"))
    script.answer("StopTrainingJob", DENIED)
    said = failure_of(in_cloud(tmp_path))
    assert said.startswith(f"stopping {NAME}: denied; ")
    assert f"{NAME} goes on and is billed; watch it and fetch its run with" in said


def test_a_job_that_ended_before_it_was_stopped_is_fetched(
    server: str, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_run(server)
    monkeypatch.setattr("sys.stdin", Terminal("s"))
    interrupted_once(script, training("Completed"))
    refused = {"__type": "ValidationException", "message": "the training job is in status Completed"}
    script.answer("StopTrainingJob", (400, refused))
    assert run_in_cloud(Work(in_cloud(tmp_path))) is not None
    assert (tmp_path / "run" / "metrics.json").exists()
    assert f"{NAME} has ended meanwhile" in capsys.readouterr().err


def test_ctrl_c_while_the_job_is_stopped_says_how_to_follow(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> tuple[int, dict[str, str]]:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Terminal("s"))
    interrupted_once(script, training("InProgress"))
    script.answer("StopTrainingJob", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_in_cloud(Work(in_cloud(tmp_path)))
    assert f"{NAME} goes on and is billed; watch it" in capsys.readouterr().err


def test_ctrl_c_can_mean_to_go_on(server: str, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_run(server)
    monkeypatch.setattr("sys.stdin", Terminal(""))
    interrupted_once(script, training("Completed"))
    assert run_in_cloud(Work(in_cloud(tmp_path))) is not None


def test_a_bucket_that_is_not_there_is_told_before_anything_is_sent(script: Script, tmp_path: Path) -> None:
    config = in_cloud(tmp_path, "launcher.bucket=elsewhere")
    assert failure_of(config) == (
        "launcher.bucket=elsewhere: there is no such bucket; accepted is a bucket of account 123456789012 "
        "(`aws s3 mb s3://elsewhere` makes one)"
    )
    assert script.asked["CreateTrainingJob"] == 0


@pytest.mark.parametrize(
    ("root", "found"), [("s3://results/phtos", "nothing is below it"), ("s3://results", "it has photos")]
)
def test_a_place_without_photos_is_told_before_anything_is_sent(
    script: Script, tmp_path: Path, root: str, found: str
) -> None:
    assert failure_of(in_cloud(tmp_path, f"data.root={root}")) == (
        f"data.root={root}: no train/ there, {found}; `python -m graft.data upload` sends a folder"
    )
    assert script.asked["CreateTrainingJob"] == 0


def test_a_tag_of_graft_is_refused_before_anything_is_sent(
    server: str, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(submit, "put", lambda uri, content: sent.append(uri))
    with pytest.raises(ConfigError, match=r"launcher\.tags=\[project=mine\]: project is not free"):
        run_in_cloud(Work(in_cloud(tmp_path, "launcher.tags=['project=mine']")))
    assert (sent, script.asked["CreateTrainingJob"]) == ([], 0)


def test_a_request_that_would_be_refused_is_not_sent(script: Script, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"launcher\.instance_type=ml\.g4dn\.huge .*; accepted is one of"):
        run_in_cloud(Work(in_cloud(tmp_path, "launcher.instance_type=ml.g4dn.huge")))
    assert script.asked["CreateTrainingJob"] == 0


def tuning(state: str, **more: Any) -> Answer:
    """What DescribeHyperParameterTuningJob says."""
    limits = {"ResourceLimits": {"MaxParallelTrainingJobs": 1}}
    return 200, {"HyperParameterTuningJobStatus": state, "HyperParameterTuningJobConfig": limits, **more}


def trial(name: str, state: str, minutes: float, value: float | None = None) -> dict[str, Any]:
    """An entry of ListTrainingJobsForHyperParameterTuningJob."""
    times = {"TrainingStartTime": 1_795_000_000, "TrainingEndTime": 1_795_000_000 + 60 * minutes}
    told: dict[str, Any] = {"FinalHyperParameterTuningJobObjectiveMetric": {"MetricName": "valid/loss", "Value": value}}
    named = {"TrainingJobName": name, "TrainingJobStatus": state, "TunedHyperParameters": {"optim__lr": "0.01"}}
    return named | times | (told if value is not None else {})


def search_of(tmp_path: Path, *more: str) -> Work:
    config = in_cloud(tmp_path, "search.backend=tuning_job", "data.images=100", *more)
    return Work(config, Entry.tune, (), 2, {"optim.lr": Spread((), 0.01, 0.1)})


def told_trials(script: Script, state: str, *trials: dict[str, Any]) -> None:
    """Let the tuning job end so, with these trials."""
    script.answer("CreateHyperParameterTuningJob", (200, {"HyperParameterTuningJobArn": "arn"}))
    script.answer("DescribeHyperParameterTuningJob", tuning(state))
    script.answer("ListTrainingJobsForHyperParameterTuningJob", (200, {"TrainingJobSummaries": list(trials)}))


@pytest.fixture
def no_output(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The places from which the run of a best trial is fetched; nothing is."""
    fetched: list[str] = []
    monkeypatch.setattr(cloud, "fetch_output", lambda location, run_dir: fetched.append(location))
    return fetched


def test_a_stopped_search_is_read_by_the_same_command_and_not_begun_anew(
    script: Script, tmp_path: Path, no_output: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    trials = trial(f"{NAME}-001", "Completed", 30, 0.5), trial(f"{NAME}-002", "Stopped", 10)
    told_trials(script, "Stopped", *trials)
    run_in_cloud(search_of(tmp_path, "launcher.wait=false"))
    main(["follow", str(tmp_path / "run")])
    err = capsys.readouterr().err
    assert f"; the same command with run_dir={tmp_path / 'run'} reads the trials that ended, and with another" in err
    assert "its trials:" not in err
    assert "billed: 40.0 minutes, $0.49; planned: " in err
    for more in ((), ("launcher.wait=false",)):
        found = tune_in_cloud(search_of(tmp_path, *more))
        assert [(one.state, one.value) for one in found] == [("Completed", 0.5), ("Stopped", None)]
    assert no_output == [f"s3://results/graft/jobs/{NAME}-001/output/output.tar.gz"] * 2
    assert script.asked["CreateHyperParameterTuningJob"] == 1


def test_a_search_that_was_stopped_before_its_first_trial_has_nothing_to_read(script: Script, tmp_path: Path) -> None:
    told_trials(script, "Stopped")
    with pytest.raises(CloudError, match=f"{NAME} was stopped before a trial began; another run_dir starts another"):
        tune_in_cloud(search_of(tmp_path))


@pytest.mark.parametrize("follows", [False, True])
def test_a_failed_search_counts_what_its_trials_were_billed(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], follows: bool
) -> None:
    told_trials(script, "Failed", trial(f"{NAME}-001", "Failed", 60), trial(f"{NAME}-002", "Failed", 30))
    work = search_of(tmp_path, "budget.usd=3", f"launcher.wait={'false' if follows else 'true'}")
    if follows:
        assert tune_in_cloud(work) == []
    with pytest.raises(CloudError, match=f"job {NAME} failed; nothing of it runs any more"):
        main(["follow", str(tmp_path / "run")]) if follows else tune_in_cloud(work)
    assert "billed: 90.0 minutes, $1.10; planned: " in capsys.readouterr().err
    ticket = read_ticket(tmp_path / "run")
    assert ticket is not None
    assert ticket.most_usd == pytest.approx(1.5 * 0.7364)
    with pytest.raises(ConfigError, match=r"budget\.usd=1\.2: .*, 1\.10 of it for other jobs of this run or sweep"):
        tune_in_cloud(search_of(tmp_path, "budget.usd=1.2"))


def test_a_failed_search_whose_bill_was_not_told_is_asked_again(script: Script, tmp_path: Path) -> None:
    script.answer("CreateHyperParameterTuningJob", (200, {"HyperParameterTuningJobArn": "arn"}))
    script.answer("DescribeHyperParameterTuningJob", tuning("Failed"))
    billed = 200, {"TrainingJobSummaries": [trial(f"{NAME}-001", "Failed", 60)]}
    script.answer("ListTrainingJobsForHyperParameterTuningJob", DENIED, billed)
    with pytest.raises(CloudError, match=f"the trials of {NAME}: denied; .*; job {NAME} failed; nothing of it"):
        tune_in_cloud(search_of(tmp_path, "budget.usd=3"))
    ticket = read_ticket(tmp_path / "run")
    assert ticket is not None
    assert ticket.limit_usd is not None
    assert ticket.most_usd == ticket.limit_usd > (ticket.planned_usd or (0, 0))[1]
    with pytest.raises(ConfigError, match=r"budget\.usd=0\.8: .*, 0\.74 of it for other jobs of this run or sweep"):
        tune_in_cloud(search_of(tmp_path, "budget.usd=0.8"))
