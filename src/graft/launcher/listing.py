"""Everything of graft's in an account: training and tuning jobs, with age and dollars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any

from graft.launcher.calls import client, explained
from graft.launcher.policy import NAMES
from graft.launcher.prices import Prices

_NEWEST = 50  # of each kind, besides those that are billed
_BILLED = ("InProgress", "Stopping")
_PREFIX = NAMES.removesuffix("*")  # NameContains finds others' jobs too, which the policy does not let us describe


@dataclass(frozen=True)
class Listed:
    """A job as a person reads it.

    Attributes:
        name: of it.
        kind: training or tuning.
        state: InProgress, Stopping, Completed, Failed or Stopped.
        age_s: seconds since it was created.
        ran_s: seconds from its creation to its end, or until now.
        machines: instance type and how many, of a training job that is billed now.
    """

    name: str
    kind: str
    state: str
    age_s: float
    ran_s: float
    machines: tuple[str, int] | None = None

    @property
    def is_billed(self) -> bool:
        """Whether it costs money now."""
        return self.state in _BILLED


def list_jobs(region: str) -> list[Listed]:
    """The jobs that graft made: first all that are billed, then the newest of the others.

    Raises:
        CloudError: SageMaker cannot be asked.
    """
    found = [*_training(region), *_tuning(region)]
    return sorted(found, key=lambda job: (not job.is_billed, job.age_s))


def _training(region: str) -> Iterator[Listed]:
    with explained("listing training jobs"):
        jobs = _summaries("list_training_jobs", "TrainingJobSummaries", "TrainingJobName", region)
    for name, job in jobs.items():
        found = listed(name, "training", job["TrainingJobStatus"], job, "TrainingEndTime")
        yield replace(found, machines=_machines(name, region)) if found.is_billed else found


def _machines(name: str, region: str) -> tuple[str, int]:
    with explained(f"job {name}"):
        described = client("sagemaker", region).describe_training_job(TrainingJobName=name)
    resources = described["ResourceConfig"]
    return resources["InstanceType"], resources["InstanceCount"]


def _tuning(region: str) -> Iterator[Listed]:
    kind = "HyperParameterTuningJob"
    with explained("listing tuning jobs"):
        jobs = _summaries("list_hyper_parameter_tuning_jobs", f"{kind}Summaries", f"{kind}Name", region)
    for name, job in jobs.items():
        yield listed(name, "tuning", job[f"{kind}Status"], job, "HyperParameterTuningEndTime")


def _summaries(operation: str, key: str, name: str, region: str) -> dict[str, dict[str, Any]]:
    """By name the entries of a list: all that are billed, however old, and the newest of the others."""
    pages = client("sagemaker", region).get_paginator(operation)

    def ours(**which: Any) -> Iterator[dict[str, Any]]:
        for page in pages.paginate(NameContains=_PREFIX, **which):
            yield from (job for job in page[key] if job[name].startswith(_PREFIX))

    newest = ours(SortBy="CreationTime", SortOrder="Descending", PaginationConfig={"PageSize": _NEWEST})
    billed = chain.from_iterable(ours(StatusEquals=state) for state in _BILLED)
    return {job[name]: job for job in chain(billed, islice(newest, _NEWEST))}


def listed(name: str, kind: str, state: str, job: dict[str, Any], end: str) -> Listed:
    """From an entry of a list."""
    now = datetime.now(UTC)
    created, ended = job["CreationTime"], job.get(end, now)
    return Listed(name, kind, state, (now - created).total_seconds(), (ended - created).total_seconds())


def table(jobs: Sequence[Listed], region: str, prices: Prices) -> None:
    """Print them, and what those cost so far that are billed now."""
    from rich.console import Console
    from rich.table import Table

    rows = Table(title=f"jobs in {region}", title_justify="left")
    for column in ("job", "kind", "state", "age", "ran", "so far, at most"):
        rows.add_column(column, overflow="fold")
    for job in jobs:
        rows.add_row(job.name, job.kind, job.state, in_words(job.age_s), in_words(job.ran_s), cost(job, region, prices))
    out = Console()
    if jobs:
        out.print(rows)
    billed = sum(job.is_billed for job in jobs)
    out.print(f"{billed} of {len(jobs)} jobs are billed now; `python -m serve list` shows endpoints", highlight=False)


def cost(job: Listed, region: str, prices: Prices) -> str:
    """Dollars of a job that is billed now, in words; its trials stand for a tuning job."""
    if job.machines is None:
        return ""
    usd = usd_so_far(job, region, prices)
    return f"no price of {job.machines[0]}" if usd is None else f"${usd:.2f}"


def usd_so_far(job: Listed, region: str, prices: Prices) -> float | None:
    """Dollars of a job whose machines are known, at most: waiting is counted too. None where the price is not known."""
    if job.machines is None:
        return None
    name, count = job.machines
    price = prices.of(name, region)
    return None if price is None else job.ran_s / 3600 * price * count


def in_words(seconds: float) -> str:
    """5 min, 3.2 h or 2.1 days."""
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
