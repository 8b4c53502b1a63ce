"""What a person is told of a job that has ended: how it did, what is left of it, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from graft.errors import CloudError
from graft.launcher.ticket import Ticket


def ended_badly(ticket: Ticket, run_dir: Path) -> str:
    """What a person is told of a job that failed or was stopped."""
    if not ticket.was_created:
        return (
            f"job {ticket.name} was never created{stays([ticket.uri + '/'])}; the same command with run_dir={run_dir} "
            "tries again"
        )
    if ticket.kind == "training":
        goes_on = "goes on from its checkpoints"
    elif ticket.state == "Stopped":
        goes_on = "reads the trials that ended, and with another run_dir starts another search"
    else:
        goes_on = "starts another one"
    return f"{_end(ticket)}; the same command with run_dir={run_dir} {goes_on}"


def stays(places: Sequence[str]) -> str:
    """What is left of a job that was not created: what was sent for it. Empty where nothing was."""
    return f"; what was sent stays in {' and '.join(places)} (S3 storage is billed)" if places else ""


def _end(ticket: Ticket) -> str:
    """How a job ended, and what is left of it."""
    reason = f": {ticket.reason}" if ticket.reason else ""
    return (
        f"job {ticket.name} {ticket.state.lower()}{reason}; nothing of it runs any more, its files remain in "
        f"{ticket.uri}/ (S3 storage is billed)"
    )


@contextmanager
def after_the_end(ticket: Ticket, run_dir: Path) -> Iterator[None]:
    """What goes wrong once a job has ended says how it did, and what fetches its results later.

    Raises:
        CloudError: in place of one that does not.
    """
    try:
        yield
    except CloudError as error:
        if ticket.kind == "training":
            again = f"`python -m graft.launcher follow {run_dir}` fetches its run"
        elif ticket.state != "Failed":
            again = f"the same command with run_dir={run_dir} fetches its trials"
        else:  # that would start another one
            again = (
                "`aws sagemaker list-training-jobs-for-hyper-parameter-tuning-job --hyper-parameter-tuning-job-name "
                f"{ticket.name}` shows its trials"
            )
        raise CloudError(f"{error}; {_end(ticket)}; {again}") from error
