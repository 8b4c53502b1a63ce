"""A command with trainer=sagemaker_*: plan, submit, follow, fetch, against moto's server, whose jobs end at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from graft.config import Config
from graft.errors import CloudError, RunError
from graft.launcher import calls, submit
from graft.launcher.cloud import Work, run_in_cloud
from graft.launcher.ticket import read_ticket
from tests.composing import composed
from tests.s3server import client, new_bucket, running_server, use_server

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
    calls.client.cache_clear()
    return new_bucket(server, "results")


def in_cloud(tmp_path: Path, *more: str) -> Config:
    places = (
        f"run_dir={tmp_path / 'run'}",
        f"features.cache_dir={tmp_path / 'cache'}",
        "data.root=s3://results/photos",
    )
    account = (f"launcher.role={ROLE}", "launcher.bucket=results", "launcher.region=us-east-1", "launcher.image=here:1")
    return composed("trainer=sagemaker_gpu", "data=folder", *places, *account, *more)


def put(server: str, key: str, content: object) -> None:
    client(server).put_object(Bucket="results", Key=key, Body=json.dumps(content).encode())


def test_a_run_is_submitted_followed_and_fetched(server: str, bucket: str, tmp_path: Path) -> None:
    run = f"graft/jobs/{NAME}/checkpoints/run"
    put(server, f"{run}/metrics.json", METRICS)
    put(server, f"{run}/config.yaml", "of the container")
    put(server, f"{run}/run.json", {"id": "1", "state": "finished"})
    ticket = run_in_cloud(Work(in_cloud(tmp_path)))
    assert ticket is not None
    assert ticket.state == "Completed"
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == METRICS
    assert "root: s3://results/photos" in (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(RunError, match="holds a finished run"):
        run_in_cloud(Work(in_cloud(tmp_path)))
