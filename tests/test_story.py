"""`make story` in short: photos to S3, a training job, its run, an endpoint, answers, and nothing left."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from unittest import mock

import pytest

from tests.aws.server import BUCKET, LocalAws, running_aws
from tests.aws.story import Broken, Stage, ask, tell
from tests.conftest import TOOLKIT
from tests.pictures import draw_folder
from tests.training import TINY


class Scripted(Stage):
    """A stage on which the endpoint says one label of every photo."""

    said = "class_0"

    def run(self, *command: str) -> str:
        content = {"photo": command[3], "predictions": [{"label": self.said}, {"label": "class_1"}]}
        return f"asking\n{json.dumps(content)}\n"


def stage(folder: Path, aws: LocalAws, labels: tuple[str, ...]) -> Stage:
    """With a run that gets a photo of each label right."""
    lines = [f"/jobs/photos/test/{label}/000.jpg,test,{label},{label}\n" for label in labels]
    (folder / "runs" / "best").mkdir(parents=True)
    (folder / "runs" / "best" / "predictions.csv").write_text("path,split,label,class_1\n" + "".join(lines))
    return Scripted(aws, folder, folder / "photos", ())


def test_a_wrong_answer_breaks_the_story_though_the_path_holds_the_label(tmp_path: Path) -> None:
    with pytest.raises(Broken) as caught:
        ask(stage(tmp_path, mock.Mock(), ("class_0", "class_1", "class_2")))
    assert str(caught.value) == f"{tmp_path}/photos/test/class_1/000.jpg is of class_1; the endpoint says class_0"


def test_too_few_photos_break_the_story(tmp_path: Path) -> None:
    with pytest.raises(Broken, match="the run gets photos of 1 classes right; 3 are to be asked"):
        ask(stage(tmp_path, mock.Mock(), ("class_0",)))


@pytest.mark.toolkit
@pytest.mark.slow
@pytest.mark.timeout(600)
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
