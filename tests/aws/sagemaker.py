"""The operations of SageMaker that graft uses, with the refusals that AWS documents; the rest is left to moto."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.aws.account import arn, check_role
from tests.aws.rejections import in_use, invalid, not_found
from tests.aws.training import ENDED, TrainingJob

Request = Mapping[str, Any]
Operation = Callable[[Request], dict[str, Any]]


@cache
def _shapes() -> Any:
    """The service model of SageMaker in botocore."""
    from botocore.loaders import Loader
    from botocore.model import ServiceModel

    return ServiceModel(Loader().load_service_model("sagemaker", "service-2"))


def check_request(name: str, request: Request) -> None:
    """Refuse what the service model does not know, and what lacks what it requires."""
    from botocore.validate import ParamValidator

    shape = _shapes().operation_model(name).input_shape
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        raise invalid(report.generate_report())


@dataclass
class SageMaker:
    """The jobs of an account.

    Attributes:
        folder: where machines have their files.
        program: the toolkit's `train`.
        url: of the local AWS.
    """

    folder: Path
    program: Path
    url: str = ""
    training_jobs: dict[str, TrainingJob] = field(default_factory=dict)
    tags: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def operations(self) -> dict[str, Operation]:
        """By name as the API has it."""
        return {
            "CreateTrainingJob": self.create_training_job,
            "DescribeTrainingJob": lambda request: self._training_job(request).describe(),
            "StopTrainingJob": self.stop_training_job,
            "ListTrainingJobs": self.list_training_jobs,
            "ListTags": self.list_tags,
            "AddTags": self.add_tags,
        }

    def create_training_job(self, request: Request) -> dict[str, Any]:
        """Start a job."""
        check_role(self.url, request["RoleArn"])
        name = request["TrainingJobName"]
        with self._lock:
            if name in self.training_jobs:
                raise in_use(
                    "Training job names must be unique within an AWS account and region, and a training job with this "
                    f"name already exists ({arn('training-job', name)})"
                )
            job = TrainingJob(request, self.url, self.program, self._place())
            self.training_jobs[name] = job
            self.tags[job.arn] = list(request.get("Tags", []))
            job.start()
        return {"TrainingJobArn": job.arn}

    def _place(self) -> Path:
        """A folder that no running job has; the lowest number, so that paths are the same from job to job."""
        taken = {job.base for job in self.training_jobs.values() if job.finished is None}
        places = (self.folder / f"job-{number}" for number in range(len(taken) + 1))
        return next(place for place in places if place not in taken)

    def _training_job(self, request: Request) -> TrainingJob:
        try:
            return self.training_jobs[request["TrainingJobName"]]
        except KeyError:
            raise not_found() from None

    def stop_training_job(self, request: Request) -> dict[str, Any]:
        """Tell a job to stop."""
        job = self._training_job(request)
        if job.status in ENDED:
            raise invalid(f"The request was rejected because the training job is in status {job.status}.")
        job.stop()
        return {}

    def list_training_jobs(self, request: Request) -> dict[str, Any]:
        """Jobs of a status or a part of a name, the newest first."""
        jobs = [
            job.summary()
            for job in self.training_jobs.values()
            if request.get("StatusEquals", job.status) == job.status and request.get("NameContains", "") in job.name
        ]
        jobs.sort(key=lambda job: job["CreationTime"], reverse=request.get("SortOrder", "Descending") == "Descending")
        return paged("TrainingJobSummaries", jobs, request)

    def list_tags(self, request: Request) -> dict[str, Any]:
        """Of an ARN."""
        return {"Tags": self.tags.get(request["ResourceArn"], [])}

    def add_tags(self, request: Request) -> dict[str, Any]:
        """To an ARN."""
        given = {tag["Key"]: tag for tag in [*self.tags.get(request["ResourceArn"], []), *request["Tags"]]}
        self.tags[request["ResourceArn"]] = list(given.values())
        return {"Tags": self.tags[request["ResourceArn"]]}

    def interrupt(self, name: str) -> None:
        """Take the machines of a job away, as for a spot interruption that gives no warning."""
        job = self._training_job({"TrainingJobName": name})
        for machine in job.machines:
            machine.end()
        job.interrupting.set()

    def close(self) -> None:
        """End all jobs at once, and wait until their threads have."""
        for job in self.training_jobs.values():
            job.grace_s = 0.0
            job.stopping.set()
        for job in self.training_jobs.values():
            if job.thread:
                job.thread.join(timeout=30)


def paged(key: str, entries: list[dict[str, Any]], request: Request) -> dict[str, Any]:
    """A page of a list: `MaxResults` (100 by default) from `NextToken` on."""
    first = int(request.get("NextToken", 0))
    last = first + int(request.get("MaxResults", 100))
    more = {"NextToken": str(last)} if last < len(entries) else {}
    return {key: entries[first:last], **more}


def now() -> float:
    """Seconds since 1970, as the JSON of the API has times."""
    return time.time()
