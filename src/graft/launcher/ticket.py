"""job.json in a run directory: the job that was submitted for it, so that anybody can follow it later."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from graft.errors import CloudError
from graft.storage import write_text

FILE = "job.json"
_NEVER = "it was never created"


@dataclass(frozen=True)
class Ticket:
    """A job and what was planned of it.

    Attributes:
        name: of the job.
        kind: training or tuning.
        entry: what it runs: train or tune.
        region: where.
        uri: s3:// place of its files: source/, checkpoints/, output/.
        results: s3:// place of its run directory.
        instance_type: of its machines.
        instances: how many.
        usd_per_hour: of one of them; None where the price is not known.
        planned_minutes: from and to; None where nothing was planned.
        planned_usd: likewise.
        limit_usd: what it costs where its limits end it; None where the price is not known.
        state: submitting, submitted, then Completed, Failed or Stopped.
        reason: why it failed or stopped; empty otherwise.
        billed_seconds: of all machines together, once it has ended.
        actual_usd: likewise.
        followed: whether the command that submitted it waits for it.
        spent_usd: what the jobs before it, whose run it goes on with, cost or may have cost.
    """

    name: str
    kind: str
    entry: str
    region: str
    uri: str
    results: str
    instance_type: str
    instances: int
    usd_per_hour: float | None = None
    planned_minutes: tuple[float, float] | None = None
    planned_usd: tuple[float, float] | None = None
    limit_usd: float | None = None
    state: str = "submitting"
    reason: str = ""
    billed_seconds: int | None = None
    actual_usd: float | None = None
    followed: bool = True
    spent_usd: float = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether nothing is to be expected of the job any more."""
        return self.state not in ("submitting", "submitted")

    @property
    def was_created(self) -> bool:
        """Whether there is, or may be, a job of this name."""
        return self.reason != _NEVER

    @property
    def most_usd(self) -> float:
        """Dollars that it and the jobs before it cost: billed, or at most while that is not known."""
        planned = (self.planned_usd or (0.0, 0.0))[1]
        if self.actual_usd is not None:
            return self.spent_usd + self.actual_usd
        # A training job tells its bill with its end, if it has one; that of a tuning job stands with its trials.
        is_told = self.has_ended and self.kind == "training"
        return self.spent_usd + (planned if is_told or self.limit_usd is None else self.limit_usd)

    def usd(self, seconds: float) -> float | None:
        """What so many seconds of one machine cost."""
        return None if self.usd_per_hour is None else seconds / 3600 * self.usd_per_hour


def void(ticket: Ticket) -> Ticket:
    """The ticket of a job that was not created: nothing is billed."""
    return replace(ticket, state="Failed", reason=_NEVER, billed_seconds=0, actual_usd=0.0)


def write_ticket(run_dir: Path, ticket: Ticket) -> Ticket:
    """Write job.json; returns the ticket."""
    write_text(run_dir / FILE, json.dumps(asdict(ticket), indent=1) + "\n")
    return ticket


def read_ticket(run_dir: Path) -> Ticket | None:
    """The job that was submitted for a run directory; None where there is none.

    Raises:
        CloudError: its file is damaged.
    """
    path = run_dir / FILE
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        for key in ("planned_minutes", "planned_usd"):
            content[key] = tuple(content[key]) if content.get(key) else None
        return Ticket(**content)
    except (OSError, ValueError, TypeError) as error:
        raise CloudError(
            f"{path} cannot be read ({error}); `python -m graft.launcher list` shows the jobs of the account"
        ) from error
