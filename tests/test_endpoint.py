"""`python -m serve deploy, predict, list, delete` against the local AWS, whose endpoints serve the uploaded archive."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graft.errors import CloudError, ConfigError, RunError
from graft.launcher import calls
from graft.launcher.policy import TTL_ROLE
from serve import endpoint_creation as creation
from serve.__main__ import main
from serve.endpoint import delete, deploy
from serve.endpoint_listing import show
from serve.endpoint_predicting import predict
from serve.endpoint_requests import FOLDER
from serve.endpoint_role import make_ttl_role
from tests.aws.account import ACCOUNT
from tests.aws.client import HERE
from tests.aws.server import BUCKET, ROLE, LocalAws, running_aws
from tests.s3server import use_server

ACCOUNT_KEYS = (
    f"launcher.role=arn:aws:iam::{ACCOUNT}:role/{ROLE}",
    f"launcher.bucket={BUCKET}",
    "serve.image=here:1",
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    # Endpoints need no toolkit of the jobs.
    with running_aws(tmp_path_factory.mktemp("aws"), Path("train")) as aws:
        yield aws


@pytest.fixture
def aws(running: LocalAws, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalAws]:
    use_server(monkeypatch, running.url)
    calls.client.cache_clear()
    yield running
    calls.client.cache_clear()
    assert leftovers(running) == []


def leftovers(aws: LocalAws) -> list[str]:
    """All that deployments made in the account, but the role."""
    sagemaker, scheduler = aws.client("sagemaker"), aws.client("scheduler")
    found = [entry["EndpointName"] for entry in sagemaker.list_endpoints()["Endpoints"]]
    found += [entry["EndpointConfigName"] for entry in sagemaker.list_endpoint_configs()["EndpointConfigs"]]
    found += [entry["ModelName"] for entry in sagemaker.list_models()["Models"]]
    found += [entry["Name"] for entry in scheduler.list_schedules()["Schedules"]]
    listed = aws.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=f"graft/{FOLDER}/").get("Contents", [])
    return found + [entry["Key"] for entry in listed]


def archive_of(run: Path) -> str:
    return f"bundle={run / 'model.tar.gz'}"


def test_an_endpoint_from_bundle_to_nothing(
    aws: LocalAws, packed_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["list"])
    nothing = "nothing of graft is billed by the hour in us-east-1: no endpoint, no running job\n"
    kept = "not counted: S3 storage; files of jobs and of endpoints that are not deleted lie in "
    assert capsys.readouterr().out == f"{nothing}{kept}launcher.bucket (not set here)\n"
    main(["deploy", "endpoint=dogs", archive_of(packed_run), *ACCOUNT_KEYS, "serve.ttl=2h"])
    said = capsys.readouterr()
    assert "plan: endpoint dogs, 1 x ml.m5.large, in us-east-1" in said.err
    assert "endpoint dogs is in service in us-east-1 and reproduces the parity samples" in said.out
    assert re.search(r"billed: \$0\.115 an hour until 20\d\d-\d\d-\d\d \d\d:\d\d UTC", said.out)
    schedule = aws.client("scheduler").get_schedule(Name="graft-dogs")
    assert schedule["Target"]["Arn"] == "arn:aws:scheduler:::aws-sdk:sagemaker:deleteEndpoint"
    assert schedule["Target"]["RoleArn"] == f"arn:aws:iam::{ACCOUNT}:role/{TTL_ROLE}"
    photos = packed_run.parent / "photos" / "test"
    for label in ("class_0", "class_1", "class_2"):
        main(["predict", str(photos / label / "000.jpg"), "endpoint=dogs", "--json"])
        assert json.loads(capsys.readouterr().out)["predictions"][0]["label"] == label
    main(["list", f"launcher.bucket={BUCKET}"])
    out = capsys.readouterr().out
    assert out.endswith(f"{kept}s3://{BUCKET}/graft/\n")
    cells = [cell.strip() for cell in next(line for line in out.splitlines() if "InService" in line).split("│")]
    assert cells[1:7] == ["endpoint", "dogs", "InService", "1 x ml.m5.large", "0 min", "$0.00"]
    assert cells[7].endswith("UTC")
    main(["delete", "endpoint=dogs"])
    out = capsys.readouterr().out
    assert out.startswith("deleted: model dogs, archive s3://graft-local/graft/endpoints/dogs/")
    assert "remains: the log /aws/sagemaker/Endpoints/dogs" in out
    main(["delete", "endpoint=dogs"])
    assert capsys.readouterr().out.startswith("nothing of endpoint dogs is there in us-east-1")
    main(["list"])
    assert capsys.readouterr().out.startswith(nothing)


def tampered(archive: Path, target: Path) -> Path:
    """The archive with other logits in its parity samples: a model that is another one than it says."""
    with tarfile.open(archive) as tar, tarfile.open(target, "w:gz", compresslevel=1) as changed:
        for entry in tar:
            content = tar.extractfile(entry)
            data = content.read() if content else b""
            if entry.name == "parity/logits.json":
                data = json.dumps([[-2 * value for value in row] for row in json.loads(data)]).encode()
            entry.size = len(data)
            changed.addfile(entry, io.BytesIO(data))
    return target


def test_a_precision_that_the_archive_does_not_offer_is_refused_before_anything_is_sent(
    aws: LocalAws, packed_run: Path
) -> None:
    archive = packed_run / "model.tar.gz"
    with pytest.raises(ConfigError) as caught:
        deploy(["endpoint=dogs", f"bundle={archive}", "serve.precision=int8", *ACCOUNT_KEYS])
    assert str(caught.value) == (
        f"serve.precision=int8: {archive} was exported in fp32, which serves auto or fp32 or bf16; "
        "`python -m serve pack run_dir=PATH serve.precision=int8` exports another one"
    )
    assert leftovers(aws) == []


@pytest.mark.slow
def test_an_endpoint_that_fails_to_start_is_rolled_back(
    aws: LocalAws, packed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.aws.containers.LONGEST_START_S", 3.0)
    # The container checks its own samples as it starts, and does not come up.
    archive = tampered(packed_run / "model.tar.gz", tmp_path / "model.tar.gz")
    with pytest.raises(CloudError) as caught:
        deploy(["endpoint=broken", f"bundle={archive}", *ACCOUNT_KEYS])
    first, last = str(caught.value).splitlines()
    assert first.startswith("endpoint broken failed: The primary container for production variant all did not pass")
    assert first.endswith("its container's log is /aws/sagemaker/Endpoints/broken")
    assert last == "all of it is rolled back: nothing is left, and nothing is billed any more"
    assert leftovers(aws) == []


@pytest.mark.slow
def test_an_endpoint_that_answers_otherwise_is_rolled_back(
    aws: LocalAws, packed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is sent is whole and comes up; it is not the model whose samples are compared.
    other = tampered(packed_run / "model.tar.gz", tmp_path / "other.tar.gz")
    sent = creation._send
    monkeypatch.setattr(creation, "_send", lambda archive, place: sent(packed_run / "model.tar.gz", place))
    with pytest.raises(RunError) as caught:
        deploy(["endpoint=other", f"bundle={other}", *ACCOUNT_KEYS])
    first, last = str(caught.value).splitlines()
    assert "endpoint other: the fp32 engine does not reproduce parity sample" in first
    assert last == "all of it is rolled back: nothing is left, and nothing is billed any more"
    assert leftovers(aws) == []


def test_a_name_that_is_taken_is_refused_before_anything_is_sent(aws: LocalAws, packed_run: Path) -> None:
    scheduler = aws.client("scheduler")
    target = {"Arn": "arn:aws:scheduler:::aws-sdk:sagemaker:deleteEndpoint", "RoleArn": ACCOUNT_KEYS[0][14:]}
    scheduler.create_schedule(
        Name="graft-dogs",
        ScheduleExpression="at(2030-01-01T00:00:00)",
        FlexibleTimeWindow={"Mode": "OFF"},
        Target=target,
    )
    with pytest.raises(ConfigError) as caught:
        deploy(["endpoint=dogs", archive_of(packed_run), *ACCOUNT_KEYS])
    # It is not ours, so that `delete` is not named, and does not take it.
    assert str(caught.value) == "endpoint=dogs: there is schedule graft-dogs already; accepted is another name"
    with pytest.raises(ConfigError, match="schedule graft-dogs was not made by `python -m serve deploy`"):
        delete(["endpoint=dogs"])
    scheduler.delete_schedule(Name="graft-dogs")


def trust_in(service: str) -> str:
    """The trust policy of a role that a service may take on."""
    statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


@pytest.fixture
def iam(aws: LocalAws) -> Any:
    """IAM without the role under which endpoints delete themselves."""
    iam = aws.client("iam")
    with suppress(iam.exceptions.NoSuchEntityException):
        for name in iam.list_role_policies(RoleName=TTL_ROLE)["PolicyNames"]:
            iam.delete_role_policy(RoleName=TTL_ROLE, PolicyName=name)
        iam.delete_role(RoleName=TTL_ROLE)
    return iam


def test_a_role_that_an_earlier_deployment_made_is_brought_up_to_date(iam: Any) -> None:
    tags = [{"Key": "project", "Value": "graft"}]
    iam.create_role(RoleName=TTL_ROLE, AssumeRolePolicyDocument=trust_in("ec2.amazonaws.com"), Tags=tags)
    make_ttl_role(replace(HERE, tags=(("project", "graft"),)))
    trust = iam.get_role(RoleName=TTL_ROLE)["Role"]["AssumeRolePolicyDocument"]["Statement"][0]
    assert trust["Principal"] == {"Service": "scheduler.amazonaws.com"}
    assert trust["Condition"] == {"StringEquals": {"aws:SourceAccount": ACCOUNT}}
    assert iam.list_role_policies(RoleName=TTL_ROLE)["PolicyNames"] == ["delete-endpoints"]
    make_ttl_role(replace(HERE, tags=(("project", "graft"),)))


def test_a_role_that_somebody_else_made_is_left_as_it_is(iam: Any, aws: LocalAws, packed_run: Path) -> None:
    iam.create_role(RoleName=TTL_ROLE, AssumeRolePolicyDocument=trust_in("ec2.amazonaws.com"))
    with pytest.raises(ConfigError) as caught:
        deploy(["endpoint=dogs", archive_of(packed_run), *ACCOUNT_KEYS])
    assert str(caught.value).startswith(
        "the role graft-endpoint-ttl is there, without the tag project=graft: somebody else made it, and it is left"
    )
    assert leftovers(aws) == []
    trust = iam.get_role(RoleName=TTL_ROLE)["Role"]["AssumeRolePolicyDocument"]["Statement"][0]
    assert trust["Principal"] == {"Service": "ec2.amazonaws.com"}
    assert iam.list_role_policies(RoleName=TTL_ROLE)["PolicyNames"] == []
    iam.delete_role(RoleName=TTL_ROLE)


def test_what_is_not_ours_is_named_and_nothing_is_deleted(aws: LocalAws, packed_run: Path) -> None:
    sagemaker = aws.client("sagemaker")
    address = f"s3://{BUCKET}/graft/endpoints/dogs/20261127-120000-abcd/model.tar.gz"

    def make_model(*tags: dict[str, str]) -> None:
        container = {"Image": "a:1", "ModelDataUrl": address}
        role = ACCOUNT_KEYS[0].partition("=")[2]
        sagemaker.create_model(ModelName="dogs", ExecutionRoleArn=role, PrimaryContainer=container, Tags=list(tags))

    aws.client("s3").put_object(Bucket=BUCKET, Key=address.split("/", 3)[3], Body=b"somebody's")
    make_model({"Key": "project", "Value": "other"})
    with pytest.raises(ConfigError) as caught:
        delete(["endpoint=dogs"])
    assert str(caught.value) == (
        "endpoint=dogs: model dogs was not made by `python -m serve deploy`, and nothing was deleted; "
        "accepted is a name all of whose parts it made"
    )
    assert leftovers(aws) == ["dogs", address.split("/", 3)[3]]
    # Ours, with the archive of another deployment: that one stays.
    sagemaker.delete_model(ModelName="dogs")
    make_model({"Key": "deployment", "Value": "20261127-120000-ffff"})
    with pytest.raises(ConfigError, match=r"already; accepted is another name, or the same after `python -m serve del"):
        deploy(["endpoint=dogs", archive_of(packed_run), *ACCOUNT_KEYS])
    delete(["endpoint=dogs"])
    assert leftovers(aws) == [address.split("/", 3)[3]]
    aws.client("s3").delete_object(Bucket=BUCKET, Key=address.split("/", 3)[3])


@pytest.mark.slow
def test_what_is_no_photo_is_told_as_the_endpoint_says_it(
    aws: LocalAws, packed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy(["endpoint=dogs", archive_of(packed_run), *ACCOUNT_KEYS, "serve.ttl=none"])
    photo, broken = packed_run.parent / "photos" / "test" / "class_1" / "000.jpg", tmp_path / "b.jpg"
    broken.write_text("no photo")
    with pytest.raises(SystemExit) as ended:
        predict([str(photo), str(broken), "endpoint=dogs"])
    assert ended.value.code == 1
    table = capsys.readouterr().out
    assert "class_1" in table
    assert "the photo cannot be read" in table
    output = tmp_path / "said.csv"
    predict([str(photo.parent), "endpoint=dogs", f"output={output}", "serve.top_k=2"])
    assert output.read_text().splitlines()[1].split(",")[1] == "class_1"
    show([])
    assert "never: python -m serve delete endpoint=dogs" in " ".join(capsys.readouterr().out.split())
    delete(["endpoint=dogs"])
    with pytest.raises(CloudError, match="endpoint=dogs: there is none of this name in us-east-1"):
        predict([str(photo), "endpoint=dogs"])


@pytest.mark.slow
def test_what_a_schedule_leaves_is_listed_and_removed(
    aws: LocalAws, packed_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy(["endpoint=dogs", archive_of(packed_run), *ACCOUNT_KEYS])
    # What EventBridge Scheduler does at its time.
    scheduler = aws.client("scheduler")
    aws.client("sagemaker").delete_endpoint(**json.loads(scheduler.get_schedule(Name="graft-dogs")["Target"]["Input"]))
    scheduler.delete_schedule(Name="graft-dogs")
    capsys.readouterr()
    show([])
    assert "left over │ dogs" in capsys.readouterr().out
    delete(["endpoint=dogs"])
    assert "endpoint configuration dogs" in capsys.readouterr().out
