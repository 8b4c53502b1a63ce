"""The client's side for tests of the local AWS: a job's source sent and the job created, by plain boto3."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graft.launcher.account import Account
from graft.launcher.job import PHOTOS_CHANNEL, Entry
from graft.launcher.packing import make_job
from graft.launcher.requests import Channel, Limits, source_uri, training_job_request
from graft.launcher.source import pack_source
from tests.aws.account import ACCOUNT, REGION, upload
from tests.aws.server import BUCKET, ROLE, LocalAws
from tests.composing import composed

IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/graft:1"
HERE = Account(f"arn:aws:iam::{ACCOUNT}:role/{ROLE}", REGION, BUCKET, "graft", IMAGE)
ENDED = ("Completed", "Failed", "Stopped")


def send_photos(aws: LocalAws, photos: Path) -> str:
    """Upload a folder; returns its address."""
    place = f"s3://{BUCKET}/{photos.name}"
    for path in photos.rglob("*"):
        if path.is_file():
            upload(aws.url, path, f"{place}/{path.relative_to(photos).as_posix()}")
    return place


def create(aws: LocalAws, name: str, photos: str, overrides: Sequence[str], more: Mapping[str, Any] = {}) -> Any:
    """Create a training job of a composed configuration; returns the client."""
    config = composed("data=folder", f"data.root={photos}", "run_dir=x", *overrides)
    bucket, key = source_uri(HERE, name).removeprefix("s3://").split("/", 1)
    aws.client("s3").put_object(Bucket=bucket, Key=key, Body=pack_source(make_job(config, Entry.train)))
    client = aws.client("sagemaker")
    request = training_job_request(config, HERE, name, [Channel(PHOTOS_CHANNEL, photos)], Limits(600))
    client.create_training_job(**{**request, **more})
    return client


def script_request(aws: LocalAws, name: str, script: str, **more: Any) -> dict[str, Any]:
    """The request of a job that runs a script of a few lines through the toolkit; its source is sent."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        entry = tarfile.TarInfo("job.py")
        entry.size = len(script.encode())
        tar.addfile(entry, io.BytesIO(script.encode()))
    aws.client("s3").put_object(Bucket=BUCKET, Key=f"scripts/{name}.tar.gz", Body=packed.getvalue())
    return {
        "TrainingJobName": name,
        "HyperParameters": {
            "sagemaker_program": "job.py",
            "sagemaker_submit_directory": f"s3://{BUCKET}/scripts/{name}.tar.gz",
        },
        "AlgorithmSpecification": {
            "TrainingImage": IMAGE,
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": "loss", "Regex": "loss=([0-9.]+);"}],
        },
        "RoleArn": HERE.role,
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        **more,
    }


def wait(client: Any, name: str, until: Sequence[str] = ENDED, seconds: float = 300) -> dict[str, Any]:
    """What is said of a job once its status is one of `until`."""
    end = time.monotonic() + seconds
    while True:
        described: dict[str, Any] = client.describe_training_job(TrainingJobName=name)
        if described["TrainingJobStatus"] in until:
            return described
        if time.monotonic() > end:
            raise AssertionError(f"{name} is {described['SecondaryStatus']} after {seconds:.0f} s")
        time.sleep(0.1)


def log_lines(aws: LocalAws, name: str) -> list[str]:
    """What all machines of a job have said."""
    logs = aws.client("logs")
    group = "/aws/sagemaker/TrainingJobs"
    streams = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{name}/")["logStreams"]
    pages = [
        page
        for stream in streams
        for page in logs.get_paginator("filter_log_events").paginate(
            logGroupName=group, logStreamNames=[stream["logStreamName"]]
        )
    ]
    return [event["message"] for page in pages for event in page["events"]]
