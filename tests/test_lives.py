"""Through the real toolkit: a job that lost its machine ends as one that did not, and two machines train as one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.aws.client import create, log_lines, send_photos, wait
from tests.aws.server import BUCKET, LocalAws, running_aws
from tests.conftest import TOOLKIT
from tests.pictures import draw_folder
from tests.serving import wait_for
from tests.training import TINY, lasting, run, tiny

pytestmark = [pytest.mark.toolkit, pytest.mark.slow, pytest.mark.timeout(600)]

EPOCHS = 12
IMAGES = ("features.enabled=false", "model.unfreeze=features.12", "data.batch_size=7", "model.hidden=16")


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    with running_aws(tmp_path_factory.mktemp("aws"), TOOLKIT) as running:
        yield running


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("photos") / "lives", train=10, valid=5, test=5)


def kept(aws: LocalAws, job: str) -> set[str]:
    """Names of what S3 has of a job's run."""
    prefix = f"graft/jobs/{job}/checkpoints/run/"
    listed = aws.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return {entry["Key"].removeprefix(prefix) for entry in listed}


def metrics_of(aws: LocalAws, job: str) -> dict[str, Any]:
    """The lasting metrics of a job that is completed."""
    assert wait(aws.client("sagemaker"), job)["TrainingJobStatus"] == "Completed", "\n".join(log_lines(aws, job)[-30:])
    key = f"graft/jobs/{job}/checkpoints/run/metrics.json"
    return lasting(json.loads(aws.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()))


def epochs_told(aws: LocalAws, job: str) -> int:
    """Lines with the objective so far: one an epoch, and one at the end."""
    return sum(line.startswith("graft valid/loss=") for line in log_lines(aws, job))


def test_an_interrupted_spot_job_ends_with_the_metrics_of_an_uninterrupted_run(
    aws: LocalAws, photos: Path, tmp_path: Path
) -> None:
    there = send_photos(aws, photos)
    lengthy = (*IMAGES, f"trainer.max_epochs={EPOCHS}", "trainer.patience=null", "trainer.checkpoint_minutes=0.005")
    create(aws, "spot", there, [*TINY, *lengthy, "launcher.spot=true", "trainer=sagemaker_cpu"])
    wait_for(lambda: "checkpoints/last.ckpt" in kept(aws, "spot"), seconds=150, pause=0.2)
    wait_for(lambda: epochs_told(aws, "spot") >= 4, seconds=100, pause=0.2)
    before = epochs_told(aws, "spot")
    assert before < EPOCHS, "it had trained before it could be interrupted"
    aws.sagemaker.interrupt("spot")
    interrupted = metrics_of(aws, "spot")
    assert epochs_told(aws, "spot") - before < EPOCHS, "it went on from its checkpoint"
    whole = lasting(run(tiny(photos, tmp_path / "whole", *lengthy)).metrics)
    assert len(whole) >= 28
    assert interrupted == pytest.approx(whole, abs=1e-6, rel=0)


def test_two_machines_give_the_metrics_of_one(aws: LocalAws, photos: Path, tmp_path: Path) -> None:
    there = send_photos(aws, photos)
    create(aws, "two", there, [*TINY, *IMAGES, "trainer=sagemaker_ddp", "trainer.num_nodes=2", "trainer.devices=1"])
    one = lasting(run(tiny(photos, tmp_path / "one", *IMAGES)).metrics)
    assert metrics_of(aws, "two") == pytest.approx(one, abs=1e-3, rel=0)
    found = aws.client("logs").describe_log_streams(
        logGroupName="/aws/sagemaker/TrainingJobs", logStreamNamePrefix="two/algo-"
    )
    assert len(found["logStreams"]) == 2
