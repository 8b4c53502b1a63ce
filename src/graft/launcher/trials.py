"""The trials of a tuning job, as SageMaker tells them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from graft.launcher.calls import client, explained
from graft.launcher.job import is_searched, key_of_hyperparameter
from graft.launcher.ticket import Ticket, write_ticket


@dataclass(frozen=True)
class TunedTrial:
    """One job of a tuning job.

    Attributes:
        name: of its training job.
        params: dotted key -> value, as text.
        state: Completed, Stopped (early, or by its limit) or Failed; InProgress while it runs.
        value: of the objective; None where it told none.
        reason: why it failed; empty otherwise.
        billed_seconds: of all its machines.
    """

    name: str
    params: dict[str, str]
    state: str
    value: float | None
    reason: str
    billed_seconds: int


def read_trials(ticket: Ticket) -> list[TunedTrial]:
    """All trials in the order in which they were created.

    Raises:
        CloudError: SageMaker cannot be asked.
    """
    return sorted(_listed(ticket), key=lambda trial: trial.name)


def with_bill(ticket: Ticket, run_dir: Path) -> Ticket:
    """A tuning job that has ended, with what all its trials were billed, kept in job.json.

    Raises:
        CloudError: SageMaker cannot be asked.
    """
    seconds = sum(trial.billed_seconds for trial in read_trials(ticket))
    return write_ticket(run_dir, replace(ticket, billed_seconds=seconds, actual_usd=ticket.usd(seconds)))


def best_trial(trials: Sequence[TunedTrial], *, maximize: bool) -> TunedTrial | None:
    """The one with the best objective of those that came to their end; None where none did."""
    ended = [(t.value, t) for t in trials if t.state == "Completed" and t.value is not None and math.isfinite(t.value)]
    if not ended:
        return None
    return (max if maximize else min)(ended, key=lambda pair: pair[0])[1]


def _listed(ticket: Ticket) -> Iterator[TunedTrial]:
    service = client("sagemaker", ticket.region)
    with explained(f"the trials of {ticket.name}"):
        pages = service.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job")
        for page in pages.paginate(HyperParameterTuningJobName=ticket.name, SortBy="CreationTime"):
            for summary in page["TrainingJobSummaries"]:
                yield trial_of(summary, ticket.instances)


def trial_of(summary: Mapping[str, Any], instances: int = 1) -> TunedTrial:
    """From an entry of ListTrainingJobsForHyperParameterTuningJob. Its times bound what is billed from above."""
    metric = summary.get("FinalHyperParameterTuningJobObjectiveMetric", {})
    start, end = summary.get("TrainingStartTime"), summary.get("TrainingEndTime")
    is_over = isinstance(start, datetime) and isinstance(end, datetime)
    seconds = (end - start).total_seconds() if is_over else 0.0  # type: ignore[operator]
    tuned = summary.get("TunedHyperParameters", {})
    return TunedTrial(
        name=str(summary["TrainingJobName"]),
        params={key_of_hyperparameter(n): str(v).strip('"') for n, v in tuned.items() if is_searched(n)},
        state=str(summary["TrainingJobStatus"]),
        value=float(metric["Value"]) if "Value" in metric else None,
        reason=str(summary.get("FailureReason", "")).strip(),
        billed_seconds=round(seconds) * instances,
    )
