"""The job that an earlier command submitted for a run directory: followed, read, or gone on with."""

from __future__ import annotations

import json
from pathlib import Path

from graft.artifacts import differences, read_state
from graft.config import Config, to_yaml
from graft.errors import RunError
from graft.launcher.ending import after_the_end
from graft.launcher.presence import confirmed
from graft.launcher.ticket import Ticket, read_ticket
from graft.launcher.trials import with_bill
from graft.terminal import say

# They say who runs a job and for how much, not what it computes.
_NOT_OF_THE_RUN = ("launcher.", "budget.", "search.backend", "search.max_minutes")


def earlier_job(config: Config, run_dir: Path) -> Ticket | None:
    """The job that an earlier command submitted for this run directory; None where none is there.

    Raises:
        RunError: the directory is finished, or holds another run.
        CloudError: AWS cannot be asked what became of it.
    """
    if read_state(run_dir).get("state") == "finished":
        raise RunError(f"run_dir={run_dir} holds a finished run; give another run_dir, or delete that one")
    ticket = read_ticket(run_dir)
    if ticket is None:
        return None
    kept = run_dir / "config.yaml"
    if kept.exists() and (listed := differences(kept.read_text(), to_yaml(config), _NOT_OF_THE_RUN)):
        raise RunError(
            f"run_dir={run_dir} is of job {ticket.name} with another configuration: {', '.join(listed)}; give the same "
            "configuration to follow it, or another run_dir"
        )
    ticket = confirmed(ticket, run_dir)
    if not ticket.has_ended:
        say(f"job {ticket.name} was submitted for this run before")
    elif ticket.kind == "tuning" and ticket.actual_usd is None:  # its watching was left, or its trials not told
        with after_the_end(ticket, run_dir):
            ticket = with_bill(ticket, run_dir)
    return ticket


def is_to_be_repeated(ticket: Ticket, run_dir: Path, *, searches: bool) -> bool:
    """Whether another job is to do what the earlier one did not.

    Args:
        ticket: of the earlier one.
        run_dir: local.
        searches: another one would be a tuning job too. One that was stopped is not begun anew: its trials are read.
    """
    if ticket.state == "Stopped" and ticket.kind == "tuning" and searches:
        return False
    return ticket.state in ("Failed", "Stopped") or _has_trials_left(ticket, run_dir)


def _has_trials_left(ticket: Ticket, run_dir: Path) -> bool:
    """Whether a job ended its search because its time was over; the next one goes on with its study."""
    if ticket.state != "Completed" or ticket.kind != "training":
        return False
    try:
        return bool(json.loads((run_dir / "search.json").read_text()).get("left"))
    except (OSError, ValueError):  # of a run, or not fetched whole: it is fetched now
        return False
