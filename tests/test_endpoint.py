"""`python -m serve deploy, predict, list, delete` against the local AWS, whose endpoints serve the uploaded archive."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from graft.launcher import calls
from serve.__main__ import main
from serve.endpoint_requests import TTL_ROLE
from tests.aws.account import ACCOUNT
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
    """All that is in the account but its role and what jobs left."""
    sagemaker, scheduler = aws.client("sagemaker"), aws.client("scheduler")
    found = [entry["EndpointName"] for entry in sagemaker.list_endpoints()["Endpoints"]]
    found += [entry["EndpointConfigName"] for entry in sagemaker.list_endpoint_configs()["EndpointConfigs"]]
    found += [entry["ModelName"] for entry in sagemaker.list_models()["Models"]]
    found += [entry["Name"] for entry in scheduler.list_schedules()["Schedules"]]
    listed = aws.client("s3").list_objects_v2(Bucket=BUCKET).get("Contents", [])
    return found + [entry["Key"] for entry in listed]


def archive_of(run: Path) -> str:
    return f"bundle={run / 'model.tar.gz'}"


def test_an_endpoint_from_bundle_to_nothing(
    aws: LocalAws, packed_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["list"])
    assert capsys.readouterr().out == "nothing of graft costs money in us-east-1: no endpoint, no running job\n"
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
    main(["list"])
    out = capsys.readouterr().out
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
    assert capsys.readouterr().out.startswith("nothing of graft costs money")
