"""The state of a job as SageMaker tells it, and as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from graft.launcher.calls import client, explained
from graft.launcher.ticket import Ticket

ENDED = ("Completed", "Failed", "Stopped")


@dataclass(frozen=True)
class Status:
    """Where a job is.

    Attributes:
        state: InProgress, Stopping, Completed, Failed or Stopped.
        phase: such as Downloading or Training; of a tuning job, how many trials are done.
        reason: why it failed; empty otherwise.
        billed_seconds: of all its machines, as far as the service says; None before.
        elapsed_s: since it was created.
        out_of_time: it was stopped by its own limit.
    """

    state: str
    phase: str
    reason: str
    billed_seconds: int | None
    elapsed_s: float
    out_of_time: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.state in ENDED


def ask(ticket: Ticket) -> Status:
    """The state of a job now.

    Raises:
        CloudError: there is no such job, or AWS cannot be asked.
    """
    service = client("sagemaker", ticket.region)
    with explained(f"job {ticket.name}"):
        if ticket.kind == "tuning":
            return of_tuning(service.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=ticket.name))
        return of_training(service.describe_training_job(TrainingJobName=ticket.name), ticket.instances)


def of_training(answer: Mapping[str, Any], instances: int = 1) -> Status:
    """From the answer of DescribeTrainingJob. `BillableTimeInSeconds` is of one machine."""
    billed = answer.get("BillableTimeInSeconds")
    secondary = str(answer.get("SecondaryStatus", ""))
    return Status(
        state=str(answer["TrainingJobStatus"]),
        phase=secondary,
        reason=str(answer.get("FailureReason", "")).strip(),
        billed_seconds=None if billed is None else int(billed) * instances,
        elapsed_s=_since(answer.get("CreationTime")),
        out_of_time=secondary in ("MaxRuntimeExceeded", "MaxWaitTimeExceeded"),
    )


def of_tuning(answer: Mapping[str, Any]) -> Status:
    """From the answer of DescribeHyperParameterTuningJob; what is billed stands with its trials."""
    counts = answer.get("TrainingJobStatusCounters", {})
    total = answer["HyperParameterTuningJobConfig"]["ResourceLimits"].get("MaxNumberOfTrainingJobs", "?")
    failed = counts.get("NonRetryableError", 0)
    phase = f"{counts.get('Completed', 0)} of {total} trials done, {counts.get('InProgress', 0)} running"
    return Status(
        state=str(answer["HyperParameterTuningJobStatus"]),
        phase=phase + (f", {failed} failed" if failed else ""),
        reason=str(answer.get("FailureReason", "")).strip(),
        billed_seconds=None,
        elapsed_s=_since(answer.get("CreationTime")),
    )


def _since(moment: Any) -> float:
    if not isinstance(moment, datetime):
        return 0.0
    return max((datetime.now(UTC) - moment).total_seconds(), 0.0)
