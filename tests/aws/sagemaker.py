"""The training and tuning jobs of an account, with the refusals that AWS documents."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.aws.account import arn, check_role
from tests.aws.hosting import Hosting
from tests.aws.listing import paged
from tests.aws.rejections import in_use, invalid, not_found
from tests.aws.training import ENDED, TrainingJob
from tests.aws.tuning import TuningJob

Request = Mapping[str, Any]
Operation = Callable[[Request], dict[str, Any]]


@cache
def _model() -> Any:
    """The service model of SageMaker in botocore."""
    from botocore.loaders import Loader
    from botocore.model import ServiceModel

    return ServiceModel(Loader().load_service_model("sagemaker", "service-2"))


def check_request(name: str, request: Request) -> None:
    """Refuse what the service model does not know, and what lacks what it requires."""
    from botocore.validate import ParamValidator

    report = ParamValidator().validate(request, _model().operation_model(name).input_shape)
    if report.has_errors():
        raise invalid(report.generate_report())


@dataclass
class SageMaker:
    """What an account has of SageMaker.

    Attributes:
        folder: where machines have their files.
        program: the toolkit's `train`.
        hosting: its models and endpoints.
        url: of the local AWS.
        tags: of an ARN.
    """

    folder: Path
    program: Path
    hosting: Hosting
    url: str = ""
    training_jobs: dict[str, TrainingJob] = field(default_factory=dict)
    tuning_jobs: dict[str, TuningJob] = field(default_factory=dict)
    tags: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def listen_at(self, url: str) -> None:
        """Know where the local AWS is."""
        self.url = self.hosting.url = url
        self.hosting.tags = self.tags

    def operations(self) -> dict[str, Operation]:
        """By name as the API has it."""
        return {
            "CreateTrainingJob": self.create_training_job,
            "DescribeTrainingJob": lambda request: self._training_job(request).describe(),
            "StopTrainingJob": self.stop_training_job,
            "ListTrainingJobs": self.list_training_jobs,
            "CreateHyperParameterTuningJob": self.create_tuning_job,
            "DescribeHyperParameterTuningJob": lambda request: self._tuning_job(request).describe(),
            "StopHyperParameterTuningJob": self.stop_tuning_job,
            "ListHyperParameterTuningJobs": self.list_tuning_jobs,
            "ListTrainingJobsForHyperParameterTuningJob": self.list_trials,
            "ListTags": lambda request: {"Tags": self.tags.get(request["ResourceArn"], [])},
            "AddTags": self.add_tags,
            **self.hosting.operations(),
        }

    def create_training_job(self, request: Request) -> dict[str, Any]:
        """Start a job."""
        check_role(self.url, request["RoleArn"])
        return {"TrainingJobArn": self._start(request).arn}

    def _start(self, request: Request, tuning_job: str | None = None) -> TrainingJob:
        name = request["TrainingJobName"]
        with self._lock:
            if name in self.training_jobs:
                raise in_use(
                    "Training job names must be unique within an AWS account and region, and a training job with this "
                    f"name already exists ({arn('training-job', name)})"
                )
            job = TrainingJob(request, self.url, self.program, self._place(), tuning_job)
            self.training_jobs[name] = job
            self.tags[job.arn] = list(request.get("Tags", []))
            job.start()
        return job

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

    def create_tuning_job(self, request: Request) -> dict[str, Any]:
        """Start a search."""
        check_role(self.url, request["TrainingJobDefinition"]["RoleArn"])
        name = request["HyperParameterTuningJobName"]
        identity = arn("hyper-parameter-tuning-job", name)
        with self._lock:
            if name in self.tuning_jobs:
                raise in_use(
                    "Hyperparameter tuning job names must be unique within an AWS account and region, and a "
                    f"hyperparameter tuning job with this name already exists ({identity})"
                )
            self.tuning_jobs[name] = TuningJob(request, self._start)
        self.tags[identity] = list(request.get("Tags", []))
        self.tuning_jobs[name].start()
        return {"HyperParameterTuningJobArn": identity}

    def _tuning_job(self, request: Request) -> TuningJob:
        try:
            return self.tuning_jobs[request["HyperParameterTuningJobName"]]
        except KeyError:
            raise not_found() from None

    def stop_tuning_job(self, request: Request) -> dict[str, Any]:
        """Tell a search to stop."""
        job = self._tuning_job(request)
        if job.status in ENDED:
            raise invalid(f"The request was rejected because the hyperparameter tuning job is in status {job.status}.")
        job.stop()
        return {}

    def list_tuning_jobs(self, request: Request) -> dict[str, Any]:
        """Searches of a status or a part of a name, the newest first."""
        jobs = [
            job.summary()
            for job in reversed(self.tuning_jobs.values())
            if request.get("StatusEquals", job.status) == job.status and request.get("NameContains", "") in job.name
        ]
        return paged("HyperParameterTuningJobSummaries", jobs, request)

    def list_trials(self, request: Request) -> dict[str, Any]:
        """The jobs of a search, the newest first."""
        job = self._tuning_job(request)
        trials = [job.trial_summary(trial) for trial in job.trials]
        if request.get("SortOrder", "Descending") == "Descending":
            trials.reverse()
        return paged("TrainingJobSummaries", trials, request)

    def add_tags(self, request: Request) -> dict[str, Any]:
        """To an ARN."""
        given = {tag["Key"]: tag for tag in [*self.tags.get(request["ResourceArn"], []), *request["Tags"]]}
        self.tags[request["ResourceArn"]] = list(given.values())
        return {"Tags": self.tags[request["ResourceArn"]]}

    def interrupt(self, name: str) -> None:
        """Take the machines of a job away, as for a spot interruption that gives no warning."""
        job = self._training_job({"TrainingJobName": name})
        job.interrupting.set()
        job.end()

    def close(self) -> None:
        """End all that runs, and wait until its threads have."""
        self.hosting.close()
        for search in self.tuning_jobs.values():
            search.stopping.set()
        for job in self.training_jobs.values():
            job.grace_s = 0.0
            job.stopping.set()
        threads = [job.thread for job in self.tuning_jobs.values()]
        threads += [job.thread for job in self.training_jobs.values()]
        for thread in threads:
            if thread:
                thread.join(timeout=30)
