"""The local AWS: training jobs through the real toolkit, with logs, metrics and archives, and what AWS refuses."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aws.client import HERE, create, log_lines, send_photos, wait
from tests.aws.server import BUCKET, LocalAws, running_aws
from tests.conftest import TOOLKIT
from tests.pictures import draw_folder
from tests.training import TINY

pytestmark = pytest.mark.toolkit


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    with running_aws(tmp_path_factory.mktemp("aws"), TOOLKIT) as running:
        yield running


@pytest.fixture(scope="module")
def photos(aws: LocalAws, tmp_path_factory: pytest.TempPathFactory) -> str:
    return send_photos(aws, draw_folder(tmp_path_factory.mktemp("photos") / "drawn"))


def test_a_training_job_ends_with_logs_metrics_a_model_and_its_run(aws: LocalAws, photos: str) -> None:
    client = create(aws, "whole", photos, TINY)
    job = wait(client, "whole")
    lines = log_lines(aws, "whole")
    assert job["TrainingJobStatus"] == "Completed", "\n".join(lines)
    statuses = [transition["Status"] for transition in job["SecondaryStatusTransitions"]]
    assert statuses == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    metrics = {entry["MetricName"]: entry["Value"] for entry in job["FinalMetricDataList"]}
    s3 = aws.client("s3")
    run = json.loads(s3.get_object(Bucket=BUCKET, Key="graft/jobs/whole/checkpoints/run/metrics.json")["Body"].read())
    assert metrics["valid/loss"] == pytest.approx(run["valid/loss"], abs=1e-6)
    assert sum("graft valid/loss=" in line for line in lines) == 4  # three epochs, and the end
    place = job["ModelArtifacts"]["S3ModelArtifacts"]
    assert place == f"{HERE.uri('jobs')}/whole/output/model.tar.gz"
    packed = s3.get_object(Bucket=BUCKET, Key=place.removeprefix(f"s3://{BUCKET}/"))["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert {"manifest.json", "network.xml", "network.bin", "code/inference.py"} <= set(tar.getnames())
