"""`make story` in short: photos to S3, a training job, its run, an endpoint, answers, and nothing left."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.aws.server import BUCKET, running_aws
from tests.aws.story import Stage, tell
from tests.conftest import TOOLKIT
from tests.pictures import draw_folder
from tests.training import TINY

pytestmark = [pytest.mark.toolkit, pytest.mark.slow, pytest.mark.timeout(600)]


def test_photos_become_an_endpoint_that_answers_and_is_gone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    photos = draw_folder(tmp_path / "photos", train=16, valid=7, test=4)
    with running_aws(tmp_path / "aws", TOOLKIT) as aws:
        tell(Stage(aws, tmp_path, photos, TINY), trials=0)
        described = aws.client("sagemaker").list_training_jobs()["TrainingJobSummaries"]
        assert [job["TrainingJobStatus"] for job in described] == ["Completed"]
        job = aws.client("sagemaker").describe_training_job(TrainingJobName=described[0]["TrainingJobName"])
        metrics = {entry["MetricName"]: entry["Value"] for entry in job["FinalMetricDataList"]}
        run = json.loads((tmp_path / "runs" / "best" / "metrics.json").read_text())
        assert metrics["valid/loss"] == pytest.approx(run["valid/loss"], abs=1e-6)
        key = job["ModelArtifacts"]["S3ModelArtifacts"].removeprefix(f"s3://{BUCKET}/")
        packed = aws.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            assert {"manifest.json", "network.xml", "network.bin", "code/inference.py"} <= set(tar.getnames())
        assert aws.client("sagemaker").list_models()["Models"] == []
    told = capfd.readouterr().out
    assert (tmp_path / "runs" / "best" / "report.html").exists()
    assert told.count("graft valid/loss=") == 4  # three epochs, and the end
