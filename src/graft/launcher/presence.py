"""Whether a job is there: of one whose answer got lost, nobody knows, and it would be billed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from graft.errors import CloudError
from graft.launcher.calls import Pause, is_absent, once_it_arrived
from graft.launcher.status import Status, ask
from graft.launcher.ticket import FILE, Ticket, void, write_ticket


def confirmed(ticket: Ticket, run_dir: Path, pause: Pause = time.sleep) -> Ticket:
    """A job, where it was not known whether it is there (its command was killed) asked for, and kept in job.json.

    Raises:
        CloudError: AWS cannot be asked.
    """
    if ticket.state != "submitting":
        return ticket
    try:
        is_there = _arrived(ticket, max(time.time() - (run_dir / FILE).stat().st_mtime, 0.0), pause)
    except CloudError as error:
        raise CloudError(f"{error}; {_unknown(ticket)}") from error
    return write_ticket(run_dir, replace(ticket, state="submitted") if is_there else void(ticket))


def was_created(ticket: Ticket, why: CloudError, pause: Pause = time.sleep) -> bool:
    """Whether a job is there after all, whose creation ended in the error `why`.

    Raises:
        CloudError: AWS cannot be asked.
    """
    try:
        return _arrived(ticket, 0.0, pause)
    except CloudError as error:
        raise CloudError(f"{why}; {_unknown(ticket)}") from error


def _arrived(ticket: Ticket, ago: float, pause: Pause) -> bool:
    """Whether a job is there, whose request was sent so many seconds ago."""
    return once_it_arrived(lambda: _state(ticket), ago, pause) is not None


def _state(ticket: Ticket) -> Status | None:
    """The state of a job; None where there is none."""
    try:
        return ask(ticket)
    except CloudError as error:
        if is_absent(error):
            return None
        raise


def _unknown(ticket: Ticket) -> str:
    return (
        f"whether {ticket.name} was created is not known, and it would be billed: "
        f"`python -m graft.launcher list launcher.region={ticket.region}` shows it"
    )
