"""The local AWS: training jobs through the real toolkit, with logs, metrics and archives, and what AWS refuses."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks.torchserve import ENVIRONMENT
from graft.launcher.requests import endpoint_config_request, endpoint_request, model_request
from serve.archive import unpack
from tests.aws.account import upload
from tests.aws.client import HERE, log_lines, script_request, wait
from tests.aws.server import BUCKET, LocalAws, running_aws
from tests.aws.tuning import is_hopeless
from tests.conftest import TOOLKIT
from tests.serving import wait_for

pytestmark = pytest.mark.toolkit


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    with running_aws(tmp_path_factory.mktemp("aws"), TOOLKIT) as running:
        yield running


def test_a_script_that_fails_tells_its_reason(aws: LocalAws) -> None:
    script = """
import json, os, sys
base = os.environ["SAGEMAKER_BASE_DIR"]
open(f"{base}/output/failure", "w").write("no more photos" + "!" * 2000)
sys.exit(3)
"""
    client = aws.client("sagemaker")
    client.create_training_job(**script_request(aws, "fails", script))
    job = wait(client, "fails")
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Failed", "Failed")
    assert job["FailureReason"].startswith("AlgorithmError: no more photos!!!")
    assert job["FailureReason"].endswith("!, exit code: 1")  # the toolkit's own, whatever the script's was
    assert len(job["FailureReason"]) == len("AlgorithmError: , exit code: 1") + 1024


def test_metrics_are_read_from_the_log_and_what_a_job_leaves_is_archived(aws: LocalAws) -> None:
    script = """
import os
print("loss=0.75;")
print("loss=0.5;")
base = os.environ["SAGEMAKER_BASE_DIR"]
open(f"{os.environ['SM_MODEL_DIR']}/weights", "w").write("w")
open(f"{os.environ['SM_OUTPUT_DATA_DIR']}/notes", "w").write("n")
"""
    client = aws.client("sagemaker")
    client.create_training_job(**script_request(aws, "speaks", script))
    job = wait(client, "speaks")
    assert job["TrainingJobStatus"] == "Completed"
    assert [(entry["MetricName"], entry["Value"]) for entry in job["FinalMetricDataList"]] == [("loss", 0.5)]
    assert {"loss=0.75;", "loss=0.5;"} <= set(log_lines(aws, "speaks"))
    assert archived(aws, "out/speaks/output/model.tar.gz") == ["weights"]
    assert archived(aws, "out/speaks/output/output.tar.gz") == ["notes"]


def test_a_job_that_takes_too_long_is_stopped_and_what_it_has_is_kept(aws: LocalAws) -> None:
    script = """
import os, time
open(f"{os.environ['SM_MODEL_DIR']}/weights", "w").write("w")
time.sleep(60)
"""
    client = aws.client("sagemaker")
    client.create_training_job(**script_request(aws, "long", script, StoppingCondition={"MaxRuntimeInSeconds": 3}))
    job = wait(client, "long")
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert archived(aws, "out/long/output/model.tar.gz") == ["weights"]


def commands(processes: Iterable[psutil.Process]) -> Iterator[str]:
    for process in processes:
        with suppress(psutil.Error):  # it has ended since
            yield " ".join(process.cmdline())


def test_a_job_is_stopped_once_and_its_processes_with_it(aws: LocalAws) -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(61)'])"
    client = aws.client("sagemaker")
    client.create_training_job(**script_request(aws, "stopped", script))
    machine = aws.sagemaker.training_jobs["stopped"]
    wait_for(lambda: any("time.sleep(61)" in command for command in commands(machine.processes())))
    client.stop_training_job(TrainingJobName="stopped")
    assert wait(client, "stopped")["SecondaryStatus"] == "Stopped"
    assert machine.processes() == []
    with pytest.raises(client.exceptions.ClientError, match="the training job is in status Stopped"):
        client.stop_training_job(TrainingJobName="stopped")


def test_an_interrupted_spot_job_starts_again_with_its_checkpoints(aws: LocalAws) -> None:
    script = """
import os, pathlib, time
folder = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"]) / "checkpoints"
lives = len(list(folder.iterdir()))
(folder / f"life-{lives}").write_text("")
if lives == 0:
    time.sleep(60)
print(f"loss={lives};")
"""
    client = aws.client("sagemaker")
    spot = {
        "EnableManagedSpotTraining": True,
        "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 120},
        "CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/kept"},
    }
    client.create_training_job(**script_request(aws, "spot", script, **spot))
    wait_for(lambda: "Contents" in aws.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="kept/life-0"), pause=0.1)
    aws.sagemaker.interrupt("spot")
    job = wait(client, "spot")
    assert job["TrainingJobStatus"] == "Completed", log_lines(aws, "spot")
    assert "Interrupted" in [transition["Status"] for transition in job["SecondaryStatusTransitions"]]
    assert job["FinalMetricDataList"][0]["Value"] == 1


def test_what_aws_refuses_is_refused(aws: LocalAws) -> None:
    client = aws.client("sagemaker")
    request = script_request(aws, "once", "pass")
    client.create_training_job(**request)
    with pytest.raises(client.exceptions.ResourceInUse, match="a training job with this name already exists"):
        client.create_training_job(**request)
    with pytest.raises(client.exceptions.ClientError, match=r"ValidationException.* Requested resource not found\."):
        client.describe_training_job(TrainingJobName="never")
    with pytest.raises(client.exceptions.ClientError, match=r"Could not assume role .*nobody"):
        client.create_training_job(**{**request, "TrainingJobName": "other", "RoleArn": f"{HERE.role}-nobody"})
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/nothing"}}
    channel = {"ChannelName": "photos", "DataSource": source}
    client.create_training_job(**script_request(aws, "no-data", "pass", InputDataConfig=[channel]))
    job = wait(client, "no-data")
    assert job["FailureReason"].startswith("ClientError: Data download failed")
    assert f"s3://{BUCKET}/nothing" in job["FailureReason"]


def test_a_tuning_job_runs_as_many_trials_as_it_may_and_tells_the_best(aws: LocalAws) -> None:
    script = """
import json, os
given = json.load(open(os.environ["SAGEMAKER_BASE_DIR"] + "/input/config/hyperparameters.json"))
print(f"loss={float(given['optim__lr']):.6f};")
"""
    definition = script_request(aws, "trials", script)
    del definition["TrainingJobName"]
    definition["StaticHyperParameters"] = definition.pop("HyperParameters")
    rates = {"Name": "optim__lr", "MinValue": "0.001", "MaxValue": "0.1", "ScalingType": "Logarithmic"}
    client = aws.client("sagemaker")
    client.create_hyper_parameter_tuning_job(
        HyperParameterTuningJobName="search",
        HyperParameterTuningJobConfig={
            "Strategy": "Bayesian",
            "HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "loss"},
            "ResourceLimits": {"MaxNumberOfTrainingJobs": 3, "MaxParallelTrainingJobs": 2},
            "ParameterRanges": {"ContinuousParameterRanges": [rates]},
        },
        TrainingJobDefinition=definition,
    )
    most = 0

    def over() -> bool:
        nonlocal most
        described = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName="search")
        most = max(most, described["TrainingJobStatusCounters"]["InProgress"])
        return bool(described["HyperParameterTuningJobStatus"] == "Completed")

    wait_for(over, seconds=60, pause=0.1)
    assert most == 2
    listed = client.list_training_jobs_for_hyper_parameter_tuning_job(HyperParameterTuningJobName="search")
    found = {
        float(trial["TunedHyperParameters"]["optim__lr"]): trial["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]
        for trial in listed["TrainingJobSummaries"]
    }
    assert len(found) == 3
    assert all(0.001 <= rate <= 0.1 and loss == pytest.approx(rate, abs=1e-6) for rate, loss in found.items())
    best = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName="search")["BestTrainingJob"]
    assert float(best["TunedHyperParameters"]["optim__lr"]) == min(found)


def test_a_trial_worse_than_the_median_of_the_running_means_is_hopeless() -> None:
    others = [[4.0, 2.0], [2.0, 1.0], [3.0, 2.0]]  # running means at step 2: 3, 1.5, 2.5
    assert is_hopeless([3.0, 2.6], others, minimise=True)
    assert not is_hopeless([3.0, 2.4], others, minimise=True)
    assert is_hopeless([3.0, 2.4], others, minimise=False) is False
    assert is_hopeless([1.0, 2.4], others, minimise=False)
    assert not is_hopeless([9.0, 9.0], others[:1], minimise=True)
    assert not is_hopeless([9.0, 9.0, 9.0], others, minimise=True)


def test_an_endpoint_answers_with_the_uploaded_model_until_it_is_deleted(aws: LocalAws, packed_run: Path) -> None:
    client, runtime = aws.client("sagemaker"), aws.client("sagemaker-runtime")
    upload(aws.url, packed_run / "model.tar.gz", f"s3://{BUCKET}/served/model.tar.gz")
    client.create_model(**model_request(HERE, "stripes", f"s3://{BUCKET}/served/model.tar.gz"))
    client.create_endpoint_config(**endpoint_config_request(HERE, "stripes", "stripes"))
    client.create_endpoint(**endpoint_request(HERE, "stripes", "stripes"))
    assert client.describe_endpoint(EndpointName="stripes")["EndpointStatus"] == "Creating"
    with pytest.raises(runtime.exceptions.ClientError, match=r"Endpoint stripes of account .* is not in service"):
        runtime.invoke_endpoint(EndpointName="stripes", Body=b"")
    with pytest.raises(client.exceptions.ClientError, match=r'Cannot update in-progress endpoint "arn:aws:sagemaker:'):
        client.delete_endpoint(EndpointName="stripes")
    client.get_waiter("endpoint_in_service").wait(EndpointName="stripes", WaiterConfig={"Delay": 1})
    photo = sorted((packed_run.parent / "photos" / "test" / "class_2").iterdir())[0].read_bytes()
    answer = runtime.invoke_endpoint(
        EndpointName="stripes", Body=photo, ContentType="image/jpeg", Accept="application/json"
    )
    assert json.loads(answer["Body"].read())["predictions"][0]["label"] == "class_2"
    assert answer["InvokedProductionVariant"] == "all"
    with pytest.raises(runtime.exceptions.ModelError, match=r"client error \(415\) from all") as refused:
        runtime.invoke_endpoint(EndpointName="stripes", Body=b"abc", ContentType="text/html")
    assert refused.value.response["OriginalStatusCode"] == 415
    assert client.list_endpoints()["Endpoints"][0]["EndpointName"] == "stripes"
    client.delete_endpoint(EndpointName="stripes")
    with pytest.raises(client.exceptions.ClientError, match="Could not find endpoint"):
        client.describe_endpoint(EndpointName="stripes")
    with pytest.raises(runtime.exceptions.ClientError, match=r"Endpoint stripes of account .* not found"):
        runtime.invoke_endpoint(EndpointName="stripes", Body=photo)
    client.delete_endpoint_config(EndpointConfigName="stripes")
    client.delete_model(ModelName="stripes")
    assert client.list_models()["Models"] == client.list_endpoint_configs()["EndpointConfigs"] == []


@pytest.mark.torchserve
def test_an_endpoint_of_awss_image_is_awss_stack(aws: LocalAws, packed_run: Path) -> None:
    client, runtime = aws.client("sagemaker"), aws.client("sagemaker-runtime")
    image = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference:2.6.0-cpu-py312"
    upload(aws.url, packed_run / "model.tar.gz", f"s3://{BUCKET}/stack/model.tar.gz")
    client.create_model(**model_request(replace(HERE, image=image), "stack", f"s3://{BUCKET}/stack/model.tar.gz"))
    client.create_endpoint_config(**endpoint_config_request(HERE, "stack", "stack"))
    client.create_endpoint(**endpoint_request(HERE, "stack", "stack"))
    client.get_waiter("endpoint_in_service").wait(EndpointName="stack", WaiterConfig={"Delay": 1})
    photo = sorted((packed_run.parent / "photos" / "test" / "class_1").iterdir())[0].read_bytes()
    answer = runtime.invoke_endpoint(EndpointName="stack", Body=photo, ContentType="image/jpeg")
    assert json.loads(answer["Body"].read())["predictions"][0]["label"] == "class_1"
    with pytest.raises(runtime.exceptions.ModelError, match=r"client error \(415\) from all"):
        runtime.invoke_endpoint(EndpointName="stack", Body=b"abc", ContentType="text/html")
    client.delete_endpoint(EndpointName="stack")
    logs = aws.client("logs").filter_log_events(logGroupName="/aws/sagemaker/Endpoints/stack")["events"]
    assert any("TorchServe" in event["message"] or "Torchserve" in event["message"] for event in logs)


def test_an_endpoint_of_awss_image_is_answered_by_the_code_in_its_archive(
    aws: LocalAws, packed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    unpack(packed_run / "model.tar.gz", tmp_path / "model")
    # Not this checkout's: its answers say so.
    answers = tmp_path / "model" / "code" / "serve" / "answers.py"
    answers.write_text(answers.read_text().replace('"predictions"', '"told by the archive"'))
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz", compresslevel=1) as tar:
        tar.add(tmp_path / "model", ".")
    client, runtime = aws.client("sagemaker"), aws.client("sagemaker-runtime")
    image = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference:2.6.0-cpu-py312"
    place = f"s3://{BUCKET}/alone/model.tar.gz"
    upload(aws.url, tmp_path / "model.tar.gz", place)
    top = {"GRAFT_SERVE_TOP_K": "2"}
    client.create_model(**model_request(replace(HERE, image=image), "alone", place, environment=top))
    client.create_endpoint_config(**endpoint_config_request(HERE, "alone", "alone"))
    client.create_endpoint(**endpoint_request(HERE, "alone", "alone"))
    client.get_waiter("endpoint_in_service").wait(EndpointName="alone", WaiterConfig={"Delay": 1})
    photo = sorted((packed_run.parent / "photos" / "test" / "class_1").iterdir())[0].read_bytes()
    answer = runtime.invoke_endpoint(EndpointName="alone", Body=photo, ContentType="image/jpeg")
    told = json.loads(answer["Body"].read())["told by the archive"]
    assert (told[0]["label"], len(told)) == ("class_1", 2)
    with pytest.raises(runtime.exceptions.ModelError, match=r"client error \(415\) from all"):
        runtime.invoke_endpoint(EndpointName="alone", Body=b"abc", ContentType="text/html")
    client.delete_endpoint(EndpointName="alone")
    logs = aws.client("logs").filter_log_events(logGroupName="/aws/sagemaker/Endpoints/alone")["events"]
    assert any("/model/code/inference.py answers" in event["message"] for event in logs)
    client.delete_endpoint_config(EndpointConfigName="alone")
    client.delete_model(ModelName="alone")


def test_an_endpoint_whose_container_ends_has_failed(aws: LocalAws, packed_run: Path) -> None:
    client = aws.client("sagemaker")
    with pytest.raises(client.exceptions.ClientError, match="Could not find model data at s3://"):
        client.create_model(**model_request(HERE, "broken", f"s3://{BUCKET}/served/none.tar.gz"))
    with pytest.raises(client.exceptions.ClientError, match="Could not find model"):
        client.create_endpoint_config(**endpoint_config_request(HERE, "broken", "broken"))
    with pytest.raises(client.exceptions.ClientError, match="Could not find endpoint configuration"):
        client.create_endpoint(**endpoint_request(HERE, "broken", "broken"))
    upload(aws.url, packed_run / "model.tar.gz", f"s3://{BUCKET}/broken/model.tar.gz")
    client.create_model(
        **model_request(HERE, "broken", f"s3://{BUCKET}/broken/model.tar.gz", environment={"PYTHONPATH": "/nowhere"})
    )
    client.create_endpoint_config(**endpoint_config_request(HERE, "broken", "broken"))
    client.create_endpoint(**endpoint_request(HERE, "broken", "broken"))
    wait_for(
        lambda: client.describe_endpoint(EndpointName="broken")["EndpointStatus"] == "Failed", seconds=60, pause=0.1
    )
    reason = client.describe_endpoint(EndpointName="broken")["FailureReason"]
    assert "did not pass the ping health check" in reason
    client.delete_endpoint(EndpointName="broken")


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (b"no archive", "Failed to extract model data archive for container"),
        (None, "Failed to download model data for container"),
    ],
)
def test_an_endpoint_whose_archive_is_damaged_or_gone_has_failed(
    aws: LocalAws, archive: bytes | None, reason: str
) -> None:
    client, s3, key = aws.client("sagemaker"), aws.client("s3"), "damaged/model.tar.gz"
    s3.put_object(Bucket=BUCKET, Key=key, Body=archive or b"")
    client.create_model(**model_request(HERE, "damaged", f"s3://{BUCKET}/{key}"))
    client.create_endpoint_config(**endpoint_config_request(HERE, "damaged", "damaged"))
    if archive is None:
        s3.delete_object(Bucket=BUCKET, Key=key)
    client.create_endpoint(**endpoint_request(HERE, "damaged", "damaged"))
    wait_for(
        lambda: client.describe_endpoint(EndpointName="damaged")["EndpointStatus"] == "Failed", seconds=20, pause=0.05
    )
    assert client.describe_endpoint(EndpointName="damaged")["FailureReason"].startswith(reason)
    client.delete_endpoint(EndpointName="damaged")
    client.delete_endpoint_config(EndpointConfigName="damaged")
    client.delete_model(ModelName="damaged")


def archived(aws: LocalAws, key: str) -> list[str]:
    """Names in an archive of the bucket."""
    packed = aws.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        return sorted(tar.getnames())
