"""What goes wrong on the way to an endpoint and away from it: one message each, and nothing billed is left unsaid."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graft.errors import CloudError, ConfigError
from graft.launcher import calls
from serve import endpoint_creation as creation
from serve import endpoint_resources as resources
from serve.archive import opened
from serve.endpoint import delete, deploy
from serve.endpoint_listing import show
from serve.endpoint_parity import check_endpoint
from serve.endpoint_predicting import predict
from serve.endpoint_requests import Kind, Resource
from tests.aws.server import BUCKET, LocalAws
from tests.s3server import CREDENTIALS
from tests.scripted import ABSENT, BROKEN, DENIED, REGION, THROTTLED, Answer, Script, _response
from tests.test_endpoint import ACCOUNT_KEYS, archive_of, leftovers, running

__all__ = ["running"]  # the fixture: a local AWS
ROLLED_BACK = "all of it is rolled back: nothing is left, and nothing is billed any more"
CREATIONS = [
    ("sagemaker", "CreateModel", "creating model dogs"),
    ("sagemaker", "CreateEndpointConfig", "creating endpoint configuration dogs"),
    ("scheduler", "CreateSchedule", "creating schedule graft-dogs"),
    ("sagemaker", "CreateEndpoint", "creating endpoint dogs"),
]


@pytest.fixture
def aws(running: LocalAws, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalAws]:
    from tests.s3server import use_server

    use_server(monkeypatch, running.url)
    calls.client.cache_clear()
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    monkeypatch.setattr("graft.launcher.calls.LATE_S", 0.0)
    yield running
    calls.client.cache_clear()


def disturb(service: str, operation: str, fault: Callable[[int, Any], Answer | None]) -> None:
    """Give `fault(number, request)` in place of an answer, where it is one; requests are numbered from 1."""
    asked = [0]

    def send(request: Any, **_: Any) -> Any:
        asked[0] += 1
        answer = fault(asked[0], request)
        return None if answer is None else _response(request.url, *answer)

    calls.client(service, REGION).meta.events.register(f"before-send.{service}.{operation}", send)


def deploy_dogs(run: Path, *more: str) -> None:
    deploy(["endpoint=dogs", archive_of(run), *ACCOUNT_KEYS, *more])


@pytest.mark.parametrize(("service", "operation", "said"), CREATIONS)
@pytest.mark.parametrize(("answer", "words"), [(THROTTLED, "AWS answered ThrottlingException"), (DENIED, "denied")])
def test_a_creation_that_is_refused_is_rolled_back(
    aws: LocalAws, packed_run: Path, service: str, operation: str, said: str, answer: Answer, words: str
) -> None:
    disturb(service, operation, lambda number, request: answer)
    with pytest.raises(CloudError) as caught:
        deploy_dogs(packed_run)
    first, last = str(caught.value).splitlines()
    assert first.startswith(f"{said}: {words}")
    assert last == ROLLED_BACK
    assert leftovers(aws) == []


@pytest.mark.slow
@pytest.mark.parametrize(("service", "operation", "said"), CREATIONS)
def test_a_creation_whose_answer_is_lost_is_told_from_somebody_elses(
    aws: LocalAws, packed_run: Path, service: str, operation: str, said: str
) -> None:
    def lose(number: int, request: Any) -> Answer | None:
        if number > 1:
            return None
        # It arrives, and then the connection breaks: the second attempt meets what the first one made.
        sent = calls.client(service, REGION)._endpoint.http_session.send(request)
        assert sent.status_code == 200
        return BROKEN

    disturb(service, operation, lose)
    deploy_dogs(packed_run)
    delete(["endpoint=dogs"])
    assert leftovers(aws) == []


def test_what_somebody_else_made_meanwhile_is_not_removed(aws: LocalAws, packed_run: Path) -> None:
    def overtake(number: int, request: Any) -> None:
        body = json.loads(request.body) | {"Tags": []}
        aws.client("sagemaker").create_endpoint_config(**body)

    disturb("sagemaker", "CreateEndpointConfig", overtake)
    with pytest.raises(ConfigError) as caught:
        deploy_dogs(packed_run)
    first, last = str(caught.value).splitlines()
    assert first == (
        "endpoint=dogs: endpoint configuration dogs was made by another deployment meanwhile; accepted is another name"
    )
    assert last == ROLLED_BACK
    assert leftovers(aws) == ["dogs"]
    aws.client("sagemaker").delete_endpoint_config(EndpointConfigName="dogs")


@pytest.mark.slow
def test_a_role_that_iam_has_just_made_is_waited_for(
    aws: LocalAws, packed_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "The execution role you provide must allow AWS EventBridge Scheduler to assume the role."
    unknown = (400, {"__type": "ValidationException", "Message": words, "message": words})
    disturb("scheduler", "CreateSchedule", lambda number, request: unknown if number < 3 else None)
    monkeypatch.setattr("serve.endpoint_resources.time.sleep", lambda seconds: None)
    deploy_dogs(packed_run)
    delete(["endpoint=dogs"])
    assert leftovers(aws) == []
    assert resources._ROLE_S == 60


STAGES = [
    ("sagemaker", "CreateModel", 1),
    ("sagemaker", "CreateEndpointConfig", 1),
    ("scheduler", "CreateSchedule", 1),
    ("sagemaker", "CreateEndpoint", 1),
    # the first looks whether the name is free
    pytest.param("sagemaker", "DescribeEndpoint", 2, marks=pytest.mark.slow),
    pytest.param("sagemaker-runtime", "InvokeEndpoint", 2, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("service", "operation", "at"), STAGES)
def test_ctrl_c_rolls_back(
    aws: LocalAws, packed_run: Path, capsys: pytest.CaptureFixture[str], service: str, operation: str, at: int
) -> None:
    def interrupt(number: int, request: Any) -> None:
        if number == at:
            raise KeyboardInterrupt

    disturb(service, operation, interrupt)
    with pytest.raises(KeyboardInterrupt):
        deploy_dogs(packed_run)
    assert capsys.readouterr().err.splitlines()[-1] == f"stopped; {ROLLED_BACK}"
    assert leftovers(aws) == []


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_rolls_back(
    aws: LocalAws, packed_run: Path, capsys: pytest.CaptureFixture[str], signum: signal.Signals, code: int
) -> None:
    disturb("sagemaker", "CreateEndpoint", lambda number, request: os.kill(os.getpid(), signum))
    with pytest.raises(SystemExit) as ended:
        deploy_dogs(packed_run)
    assert ended.value.code == code
    assert capsys.readouterr().err.splitlines()[-1] == f"stopped; {ROLLED_BACK}"
    assert leftovers(aws) == []
    assert signal.getsignal(signum) == signal.SIG_DFL


def test_a_terminal_that_is_gone_does_not_keep_the_rollback(
    aws: LocalAws, packed_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    def hang_up(number: int, request: Any) -> None:
        monkeypatch.setattr("sys.stderr", Gone())
        os.kill(os.getpid(), signal.SIGHUP)

    disturb("sagemaker", "CreateEndpoint", hang_up)
    with pytest.raises(SystemExit):
        deploy_dogs(packed_run)
    assert leftovers(aws) == []


@pytest.mark.parametrize(("step", "fault"), [("_send", KeyboardInterrupt), ("wait_for_endpoint", ZeroDivisionError)])
def test_ctrl_c_and_a_fault_of_the_program_roll_back(
    step: str,
    fault: type[BaseException],
    aws: LocalAws,
    packed_run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(creation, step, fail)
    with pytest.raises(fault):
        deploy_dogs(packed_run)
    assert capsys.readouterr().err.splitlines()[-1] == f"stopped; {ROLLED_BACK}"
    assert leftovers(aws) == []


@pytest.mark.parametrize("body", [b"[[1, 2]]", b"[1, 2, 3]", b"[[1, 2, 3], [1, 2, 3]]"])
def test_logits_of_another_number_of_classes_are_one_message(
    packed_run: Path, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr("serve.endpoint_parity.invoke", lambda *_: body)
    with opened(packed_run / "model.tar.gz") as bundle, pytest.raises(CloudError) as caught:
        check_endpoint("dogs", REGION, bundle, "fp32")
    shape = np.shape(json.loads(body))
    assert str(caught.value) == f"endpoint dogs answers with logits of shape {shape}; expected is (1, 3)"


def test_an_endpoint_whose_request_arrives_late_is_rolled_back_too(
    aws: LocalAws, packed_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calls.LATE_S == 0
    monkeypatch.setattr(calls, "LATE_S", 20.0)
    threads = []

    def stop_and_arrive(number: int, request: Any) -> None:
        send = calls.client("sagemaker", REGION)._endpoint.http_session.send
        threads.append(threading.Timer(0.5, send, (request,)))
        threads[0].start()
        raise KeyboardInterrupt

    disturb("sagemaker", "CreateEndpoint", stop_and_arrive)
    with pytest.raises(KeyboardInterrupt):
        deploy_dogs(packed_run)
    threads[0].join()
    assert leftovers(aws) == []


def test_a_rollback_leaves_what_somebody_else_put_in_the_place(aws: LocalAws, packed_run: Path) -> None:
    # The schedule is a person's, who has replaced it while the endpoint was created.
    def replace(number: int, request: Any) -> Answer:
        aws.client("scheduler").update_schedule(
            Name="graft-dogs",
            ScheduleExpression="at(2030-01-01T00:00:00)",
            FlexibleTimeWindow={"Mode": "OFF"},
            Target={"Arn": "arn:aws:scheduler:::aws-sdk:sagemaker:deleteEndpoint", "RoleArn": ACCOUNT_KEYS[0][14:]},
        )
        return DENIED

    disturb("sagemaker", "CreateEndpoint", replace)
    with pytest.raises(CloudError):
        deploy_dogs(packed_run)
    assert leftovers(aws) == ["graft-dogs"]
    aws.client("scheduler").delete_schedule(Name="graft-dogs")


def test_an_endpoint_that_cannot_be_taken_back_is_named_with_its_end(
    aws: LocalAws, packed_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disturb("sagemaker-runtime", "InvokeEndpoint", lambda number, request: BROKEN)
    disturb("sagemaker", "DeleteEndpoint", lambda number, request: DENIED if number == 1 else None)
    with pytest.raises(CloudError) as caught:
        deploy_dogs(packed_run, "serve.ttl=2h")
    first, last = str(caught.value).splitlines()
    assert first.startswith("asking endpoint dogs: AWS answered")
    assert last.startswith(
        "NOT removed: endpoint dogs, schedule graft-dogs, endpoint configuration dogs, archive s3://"
    )
    assert "the endpoint is billed until it is gone: `python -m serve delete endpoint=dogs` tries again" in last
    assert "; its schedule deletes the endpoint at 20" in last
    delete(["endpoint=dogs"])
    assert leftovers(aws) == []
    assert "nothing of it is billed any more" in capsys.readouterr().out


def test_an_archive_that_no_model_leads_to_is_named_with_the_command_that_removes_it(
    aws: LocalAws, packed_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disturb("sagemaker", "CreateModel", lambda number, request: DENIED)
    disturb("s3", "DeleteObject", lambda number, request: DENIED)
    with pytest.raises(CloudError) as caught:
        deploy_dogs(packed_run)
    (key,) = leftovers(aws)
    last = str(caught.value).splitlines()[-1]
    assert last.startswith(f"NOT removed: archive s3://{BUCKET}/{key} (")
    assert last.endswith(f"but the archive's storage: `aws s3 rm s3://{BUCKET}/{key}` removes the archive")
    delete(["endpoint=dogs", f"launcher.bucket={BUCKET}"])
    assert capsys.readouterr().out.splitlines() == [
        "nothing of endpoint dogs is there in us-east-1, and nothing of it is billed",
        "an archive stays in S3 where a deployment was killed before it made its model: "
        f"`aws s3 rm --recursive s3://{BUCKET}/graft/endpoints/dogs/` removes it",
    ]
    aws.client("s3").delete_object(Bucket=BUCKET, Key=key)


@pytest.mark.slow
def test_ctrl_c_twice_says_what_is_left(aws: LocalAws, packed_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(number: int, request: Any) -> None:
        if number in (2, 3):  # as the endpoint is waited for, and as it is taken back
            raise KeyboardInterrupt

    disturb("sagemaker", "DescribeEndpoint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        deploy_dogs(packed_run)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("stopped; NOT removed: archive s3://")
    assert "the endpoint is billed until it is gone" in last
    delete(["endpoint=dogs"])
    assert leftovers(aws) == []


@pytest.mark.slow
def test_waiting_outlives_throttling(aws: LocalAws, packed_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Six attempts of botocore are one look.
    disturb("sagemaker", "DescribeEndpoint", lambda number, request: THROTTLED if 2 <= number <= 7 else None)
    deploy_dogs(packed_run)
    assert (
        "ThrottlingException to each of 6 attempts; try again in some minutes; still waiting" in capsys.readouterr().err
    )
    delete(["endpoint=dogs"])


DOGS = Resource(Kind.endpoint, "dogs")


def state(status: str) -> Answer:
    """What DescribeEndpoint says."""
    return 200, {"EndpointName": "dogs", "EndpointStatus": status}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    yield Script(monkeypatch)
    calls.client.cache_clear()


def test_an_endpoint_that_is_being_created_is_deleted_after_that_and_passing_faults_are_sat_out(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    silence = [BROKEN] * 6  # one look
    moving = [state("Creating"), *silence, state("Creating")]
    script.answer("DescribeEndpoint", *moving, state("InService"), state("InService"), state("Deleting"), ABSENT)
    script.answer("DeleteEndpoint", *[THROTTLED] * 6, (200, {}))
    assert resources.remove(DOGS, REGION, pause=lambda seconds: None)
    assert script.asked["DeleteEndpoint"] == 7
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "endpoint dogs is Creating: it can be deleted once that has ended, which may take an hour",
        "endpoint dogs: AWS answered InternalFailure to each of 6 attempts; try again in some minutes; still waiting",
        "deleting endpoint dogs: AWS answered ThrottlingException to each of 6 attempts; try again in some minutes; "
        "still waiting",
    ]
    assert not resources.remove(DOGS, REGION)  # it is gone


def test_what_aws_denies_or_does_not_answer_for_ten_minutes_is_given_up(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.answer("DescribeEndpoint", DENIED)
    with pytest.raises(CloudError, match="endpoint dogs: denied"):
        resources.remove(DOGS, REGION)
    assert calls.GIVE_UP_S == 600
    monkeypatch.setattr(calls, "GIVE_UP_S", -1.0)
    calls.client.cache_clear()
    script.answer("DescribeEndpoint", BROKEN)
    with pytest.raises(CloudError, match="AWS answered InternalFailure"):
        resources.remove(DOGS, REGION)


@pytest.mark.parametrize(
    ("service", "operation", "command", "said"),
    [
        ("sagemaker", "DescribeEndpoint", lambda: delete(["endpoint=dogs"]), "endpoint dogs: AWS answered"),
        ("sagemaker", "ListEndpoints", lambda: show([]), "list endpoints: AWS answered"),
        ("sagemaker", "ListTrainingJobs", lambda: show([]), "listing training jobs: AWS answered"),
        ("sagemaker-runtime", "InvokeEndpoint", None, "asking endpoint dogs: AWS answered"),
    ],
)
def test_a_service_that_is_broken_is_one_message(
    aws: LocalAws, packed_run: Path, service: str, operation: str, command: Callable[[], None] | None, said: str
) -> None:
    disturb(service, operation, lambda number, request: BROKEN)
    photo = str(packed_run.parent / "photos" / "test" / "class_0" / "000.jpg")
    with pytest.raises(CloudError) as caught:
        command() if command else predict([photo, "endpoint=dogs"])
    assert str(caught.value).startswith(said)
    assert len(str(caught.value).splitlines()) == 1
