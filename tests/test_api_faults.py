"""Throttling and 500s of every operation that is asked of AWS: sat out, or one message that leaves nothing unsaid."""

from __future__ import annotations

import ast
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from graft.launcher import submit
from tests.api_commands import (
    COMMANDS,
    LINE,
    PHOTOS,
    Stage,
    before_upload,
    delete,
    deploy,
    ended,
    no_container,
    parrot,
    program,
    upload,
)
from tests.aws.hosting import Endpoint
from tests.aws.server import BUCKET, LocalAws, running_aws
from tests.composing import ROOT
from tests.faults import Faults, Kind, Operation, faulty_aws

pytestmark = pytest.mark.slow

NUMBERS = itertools.count(1)
ROLLED_BACK = "all of it is rolled back: nothing is left, and nothing is billed any more"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalAws, Faults, Path]]:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch, running_aws(folder / "aws", program(folder)) as aws:
        patch.setattr("tests.aws.training.TURN_S", 0.02)
        patch.setattr("tests.aws.tuning.TURN_S", 0.02)
        patch.setattr("tests.aws.hosting.container_of", lambda image: no_container)
        patch.setattr(Endpoint, "invoke", parrot)
        patch.setattr("graft.launcher.calls.LONGEST_PAUSE_S", 0.01)
        patch.setattr("graft.launcher.calls.LATE_S", 0.0)
        patch.setattr("graft.launcher.follow.LATE_LINES_S", 0.02)
        # What lasts is given up at once, not after ten minutes.
        patch.setattr("graft.launcher.calls.GIVE_UP_S", -1.0)
        aws.client("s3").put_object(Bucket=BUCKET, Key=f"{PHOTOS}/train/Akita/1.jpg", Body=b"a photo")
        aws.client("logs")  # before a job's thread makes one
        with faulty_aws(aws.url) as faults:
            yield aws, faults, folder


@pytest.fixture
def stage(
    world: tuple[LocalAws, Faults, Path], packed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    aws, faults, folder = world
    number = next(NUMBERS)
    job, endpoint = f"faults-{number:03d}", f"dogs-{number:03d}"
    made = Stage(aws, faults, job, endpoint, tmp_path / "run", folder / "hold", packed_run)
    monkeypatch.setattr(submit, "new_name", lambda kind: made.job)
    faults.clear()
    yield made
    asked = set(faults.asked)
    assert asked <= OPERATIONS
    faults.clear()
    made.hold.unlink(missing_ok=True)
    hosting = aws.sagemaker.hosting
    is_there = any(endpoint in place for place in (hosting.endpoints, hosting.configs, hosting.models))
    if not is_there and not any(service == "scheduler" for service, _ in asked):
        return
    ended(lambda: delete(made))
    for name in made.left():  # an archive whose model is gone
        aws.client("s3").delete_object(Bucket=BUCKET, Key=name)


@dataclass(frozen=True)
class Case:
    """An operation in a command.

    Attributes:
        command: of COMMANDS.
        operation: of AWS.
        told: what is told where it never succeeds; {job}, {endpoint} and {run} stand for names. The error begins with
            the first.
        after: so many calls succeed first.
        ends_well: the command does without it.
    """

    command: str
    operation: Operation
    told: tuple[str, ...]
    after: int = 0
    ends_well: bool = False

    def __str__(self) -> str:
        return f"{self.command}-{self.operation[1]}" + (f"-{self.after}" if self.after else "")


GOES_ON = ("{job} goes on and is billed", "`python -m graft.launcher stop {run}`")
FETCHED = (
    "job {job} completed; nothing of it runs any more",
    "`python -m graft.launcher follow {run}` fetches its run",
)
READ = ("job {job} completed; nothing of it runs any more", "the same command with run_dir={run} fetches its trials")
NOT_STOPPED = "not stopped, and billed where they run: {job}; the same command tries again"
UNTOUCHED = ("nothing was deleted, and endpoint {endpoint} is billed where there is one: `python -m serve delete",)
AGAIN = "`python -m serve delete endpoint={endpoint}` tries again"
STILL_BILLED = ("NOT removed: endpoint {endpoint}", "the endpoint is billed until it is gone", AGAIN)
PERHAPS = ("NOT removed: model {endpoint}, archive s3://", ", endpoint {endpoint} (perhaps)", *STILL_BILLED[1:])
NOT_BILLED = "none of that is billed but the archive's storage"
PARTS = ("parts of it may be left, whose storage is billed: `aws s3api list-multipart-uploads --bucket",)
CASES = [
    # A job: who asks, its bucket, its photos, its files, itself, its log, its run.
    Case("train", ("sts", "GetCallerIdentity"), ("asking whose credentials these are: AWS answered",)),
    Case("train", ("s3", "HeadBucket"), (f"launcher.bucket={BUCKET}: AWS answered",)),
    Case("train", ("s3", "ListObjectsV2"), (f"data.root=s3://{BUCKET}/{PHOTOS}", "S3 answered")),
    Case("train", ("s3", "PutObject"), ("sending the files of {job}: s3://", "S3 answered", "; no job was created")),
    Case("train", ("sagemaker", "CreateTrainingJob"), ("creating {job}: AWS answered", "; no job was created")),
    Case("train", ("sagemaker", "DescribeTrainingJob"), ("job {job}: AWS answered", *GOES_ON)),
    Case("train", ("logs", "DescribeLogStreams"), ("the log of {job}: AWS answered",), ends_well=True),
    Case("train", ("logs", "GetLogEvents"), ("the log of {job}: AWS answered",), ends_well=True),
    Case("train", ("s3", "ListObjectsV2"), ("the run cannot be fetched to {run}: s3://", *FETCHED), after=1),
    Case("train", ("s3", "GetObject"), ("the run cannot be fetched to {run}: s3://", *FETCHED)),
    # A tuning job.
    Case("search", ("sagemaker", "CreateHyperParameterTuningJob"), ("creating {job}: AWS", "; no job was created")),
    Case("search", ("sagemaker", "DescribeHyperParameterTuningJob"), ("job {job}: AWS answered", *GOES_ON)),
    Case("search", ("sagemaker", "ListTrainingJobsForHyperParameterTuningJob"), ("the trials of {job}: AWS", *READ)),
    Case("search", ("s3", "GetObject"), (f"s3://{BUCKET}/graft/jobs/{{job}}", "be fetched to {run}/best", *READ)),
    # Their end.
    Case("stop", ("sagemaker", "DescribeTrainingJob"), ("job {job}: AWS answered", NOT_STOPPED)),
    Case("stop", ("sagemaker", "StopTrainingJob"), ("stopping {job}: AWS answered", NOT_STOPPED)),
    Case("stop search", ("sagemaker", "DescribeHyperParameterTuningJob"), ("job {job}: AWS answered", NOT_STOPPED)),
    Case("stop search", ("sagemaker", "StopHyperParameterTuningJob"), ("stopping {job}: AWS answered", NOT_STOPPED)),
    # Photos.
    Case("upload", ("s3", "ListObjectsV2"), (f"s3://{BUCKET}/{{job}}", "what arrived is kept")),
    Case("upload", ("s3", "CreateMultipartUpload"), (f"s3://{BUCKET}/{{job}}/large.bin: S3 answered", *PARTS)),
    Case("upload", ("s3", "UploadPart"), (f"s3://{BUCKET}/{{job}}/large.bin: S3 answered", *PARTS)),
    Case("upload", ("s3", "CompleteMultipartUpload"), (f"s3://{BUCKET}/{{job}}/large.bin: S3 answered", *PARTS)),
    Case("upload", ("s3", "HeadObject"), (f"s3://{BUCKET}/{{job}}/large.bin: S3 answered", "what arrived is kept")),
    Case("prices", ("pricing", "GetProducts"), ("reading the price list: AWS answered",)),
    # An endpoint: its name, its archive, its parts.
    Case("deploy", ("sagemaker", "DescribeModel"), ("model {endpoint}: AWS answered",)),
    Case("deploy", ("sagemaker", "DescribeEndpointConfig"), ("endpoint configuration {endpoint}: AWS answered",)),
    Case("deploy", ("sagemaker", "DescribeEndpoint"), ("endpoint {endpoint}: AWS answered",)),
    Case("deploy", ("scheduler", "GetSchedule"), ("schedule graft-{endpoint}: AWS answered",)),
    Case("deploy", ("s3", "PutObject"), (f"s3://{BUCKET}/graft/endpoints/{{endpoint}}/", "S3 answered", ROLLED_BACK)),
    Case("deploy", ("iam", "CreateRole"), ("the role ", "AWS answered", ROLLED_BACK)),
    Case("deploy", ("iam", "GetRole"), ("the role ", "AWS answered", ROLLED_BACK)),
    Case("deploy", ("iam", "UpdateAssumeRolePolicy"), ("the role ", "AWS answered", ROLLED_BACK)),
    Case("deploy", ("iam", "PutRolePolicy"), ("the role ", "AWS answered", ROLLED_BACK)),
    Case("deploy", ("sagemaker", "CreateModel"), ("creating model {endpoint}: AWS answered", ROLLED_BACK)),
    Case("deploy", ("sagemaker", "CreateEndpointConfig"), ("creating endpoint configuration {endpoint}:", ROLLED_BACK)),
    Case("deploy", ("scheduler", "CreateSchedule"), ("creating schedule graft-{endpoint}: AWS answered", ROLLED_BACK)),
    Case("deploy", ("sagemaker", "CreateEndpoint"), ("creating endpoint {endpoint}: AWS answered", ROLLED_BACK)),
    Case("deploy", ("sagemaker", "DescribeEndpoint"), ("endpoint {endpoint}: AWS answered", *STILL_BILLED), after=1),
    Case("deploy", ("sagemaker-runtime", "InvokeEndpoint"), ("asking endpoint {endpoint}: AWS answered", ROLLED_BACK)),
    # Its end.
    Case("delete", ("sagemaker", "DescribeModel"), ("model {endpoint}: AWS answered", *UNTOUCHED)),
    Case("delete", ("sagemaker", "DescribeEndpoint"), ("endpoint {endpoint}: AWS answered", *UNTOUCHED)),
    Case("delete", ("sagemaker", "ListTags"), ("the tags of arn:aws:sagemaker:", *UNTOUCHED)),
    Case("delete", ("sagemaker", "DeleteEndpoint"), (*STILL_BILLED, "deleting endpoint {endpoint}: AWS answered")),
    Case(
        "delete",
        ("scheduler", "DeleteSchedule"),
        ("NOT removed: schedule graft-{endpoint}", "none of that is billed but", AGAIN),
    ),
    Case("delete", ("sagemaker", "DeleteEndpointConfig"), ("NOT removed: endpoint configuration {endpoint} (", AGAIN)),
    Case("delete", ("s3", "DeleteObject"), ("NOT removed: archive s3://", "`aws s3 rm s3://")),
    Case("delete", ("sagemaker", "DeleteModel"), ("NOT removed: model {endpoint} (", AGAIN)),
    # What is asked of it, and what costs money.
    Case("predict", ("sagemaker-runtime", "InvokeEndpoint"), ("asking endpoint {endpoint}: AWS answered",)),
    Case("list", ("sagemaker", "ListEndpoints"), ("list endpoints: AWS answered",)),
    Case("list", ("sagemaker", "ListModels"), ("list models: AWS answered",)),
    Case("list", ("sagemaker", "ListTrainingJobs"), ("listing training jobs: AWS answered",)),
    Case("list", ("sagemaker", "ListHyperParameterTuningJobs"), ("listing tuning jobs: AWS answered",)),
    Case("list", ("scheduler", "GetSchedule"), (), ends_well=True),
]
# The transfer manager takes back what it sent in parts where that fails: see the test of its own.
TAKEN_BACK = ("s3", "AbortMultipartUpload")
OPERATIONS = {case.operation for case in CASES} | {TAKEN_BACK}


# Botocore sits out both alike; what lasts is told apart by graft.
@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_passes_is_sat_out(stage: Stage, capsys: pytest.CaptureFixture[str], case: Case, kind: Kind) -> None:
    command = COMMANDS[case.command]
    command.before(stage)
    capsys.readouterr()
    stage.faults.befall(case.operation, kind, after=case.after, times=2)
    code = ended(lambda: command.run(stage))
    said = capsys.readouterr()
    assert code == 0, said.err
    command.check(stage, said.out, said.err)
    assert "AWS answered" not in said.err
    assert stage.faults.asked[case.operation] >= case.after + 3


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_lasts_is_one_message(stage: Stage, capsys: pytest.CaptureFixture[str], case: Case, kind: Kind) -> None:
    command = COMMANDS[case.command]
    command.before(stage)
    capsys.readouterr()
    stage.faults.befall(case.operation, kind, after=case.after)
    code = ended(lambda: command.run(stage))
    said = capsys.readouterr()
    told = [text.format(job=stage.job, endpoint=stage.endpoint, run=stage.run_dir) for text in case.told]
    assert [text for text in told if text not in said.err] == [], said.err
    assert stage.faults.asked[case.operation] > case.after
    if case.ends_well:
        assert code == 0
        command.check(stage, said.out, LINE)  # the log may be what is lost
        assert all(said.err.count(text) == 1 for text in told)
        return
    assert code == 2
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == (2 if case.command.startswith("stop") else 1)  # of each job, and of all
    assert errors[0].startswith(f"error: {told[0]}")
    if case.command not in ("list", "predict"):  # they end nothing
        assert stage.unmentioned(said.err) == []


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
@pytest.mark.parametrize("times", [2, 1000])
def test_parts_that_were_sent_are_taken_back(
    stage: Stage, capsys: pytest.CaptureFixture[str], kind: Kind, times: int
) -> None:
    before_upload(stage)
    stage.faults.befall(("s3", "UploadPart"), kind)
    stage.faults.befall(TAKEN_BACK, kind, times=times)
    assert ended(lambda: upload(stage)) == 2
    assert PARTS[0] in capsys.readouterr().err
    s3 = stage.aws.client("s3")
    left = [entry for entry in s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) if stage.job in entry["Key"]]
    assert len(left) == (1 if times > 2 else 0)
    for entry in left:
        s3.abort_multipart_upload(Bucket=BUCKET, Key=entry["Key"], UploadId=entry["UploadId"])


def interrupt() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("what", "code"), [(interrupt, 130), (terminate, 143)])
@pytest.mark.parametrize(
    ("operation", "told"),
    [
        (("sagemaker", "DescribeEndpoint"), UNTOUCHED),
        (("sagemaker", "DeleteEndpoint"), PERHAPS),
        (("sagemaker", "DeleteModel"), PERHAPS),
    ],
)
def test_a_delete_that_is_stopped_says_what_may_be_left(
    stage: Stage,
    capsys: pytest.CaptureFixture[str],
    operation: Operation,
    told: tuple[str, ...],
    what: Callable[[], None],
    code: int,
) -> None:
    deploy(stage)
    capsys.readouterr()
    stage.faults.befall(operation, what, times=1)
    assert ended(lambda: delete(stage)) == code
    err = capsys.readouterr().err
    assert [line for line in err.splitlines() if line.startswith("stopped; ")]
    assert [text for text in told if text.format(endpoint=stage.endpoint) not in err] == []
    assert stage.unmentioned(err) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


SERVICES = {"iam", "logs", "pricing", "s3", "sagemaker", "sagemaker-runtime", "scheduler", "sts"}
# What boto3's transfer manager makes of `upload` and `download`.
TRANSFERS = {"PutObject", "GetObject", "HeadObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}


def test_no_operation_is_asked_for_that_no_fault_befalls() -> None:
    """What the code names, against what the cases above spoil: whoever adds a call adds its faults."""
    named, clients = set(), set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                named.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                named.add(node.value)
            elif isinstance(node, ast.Call) and client_of(node):
                clients.add(client_of(node))
    assert clients <= SERVICES
    known = spellings()
    found = {operation for word in named & known.keys() for operation in known[word]}
    assert found | {("s3", name) for name in TRANSFERS} | {TAKEN_BACK} == OPERATIONS


def sources() -> list[Path]:
    """The code, but for the policies, which name what is allowed, not what is asked for."""
    found = [*(ROOT / "src").rglob("*.py"), *(ROOT / "serve").rglob("*.py"), ROOT / "train.py", ROOT / "tune.py"]
    return [path for path in found if path.name != "policy.py"]


def client_of(node: ast.Call) -> str:
    """The service of client("SERVICE", ..); empty where it is no such call."""
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    first = node.args[0] if node.args else None
    return str(first.value) if called in ("client", "_call") and isinstance(first, ast.Constant) else ""


def spellings() -> dict[str, set[Operation]]:
    """How operations are written, as the API and as boto3 does -> those that are written so."""
    from botocore import xform_name
    from botocore.loaders import Loader

    found: dict[str, set[Operation]] = {}
    for service in SERVICES:
        for name in Loader().load_service_model(service, "service-2")["operations"]:
            for word in (name, xform_name(name)) if "_" in xform_name(name) else ():  # not Search, an English word
                found.setdefault(word, set()).add((service, name))
    return found
