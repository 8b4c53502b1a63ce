"""Whether a job is there: of one whose answer got lost, nobody knows, and it would be billed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from graft.errors import CloudError
from graft.launcher.calls import is_absent
from graft.launcher.status import ask
from graft.launcher.ticket import Ticket, void, write_ticket


def exists(ticket: Ticket) -> bool:
    """Whether a job is there, whatever its state.

    Raises:
        CloudError: AWS cannot be asked.
    """
    try:
        ask(ticket)
    except CloudError as error:
        if is_absent(error):
            return False
        raise
    return True


def confirmed(ticket: Ticket, run_dir: Path) -> Ticket:
    """A job, where it was not known whether it is there (its command was killed) asked for, and kept in job.json.

    Raises:
        CloudError: AWS cannot be asked.
    """
    if ticket.state != "submitting":
        return ticket
    try:
        is_there = exists(ticket)
    except CloudError as error:
        raise CloudError(f"{error}; {_unknown(ticket)}") from error
    return write_ticket(run_dir, replace(ticket, state="submitted") if is_there else void(ticket))


def was_created(ticket: Ticket, why: CloudError) -> bool:
    """Whether a job is there after all, whose creation ended in the error `why`.

    Raises:
        CloudError: AWS cannot be asked.
    """
    try:
        return exists(ticket)
    except CloudError as error:
        raise CloudError(f"{why}; {_unknown(ticket)}") from error


def _unknown(ticket: Ticket) -> str:
    return (
        f"whether {ticket.name} was created is not known, and it would be billed: "
        f"`python -m graft.launcher list launcher.region={ticket.region}` shows it"
    )
