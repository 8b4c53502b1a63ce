"""The jobs of a sweep (`-m`): submitted as others end, followed together, fetched one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from graft.artifacts import read_state
from graft.errors import CloudError
from graft.launcher.follow import ask_patiently, ended, spent
from graft.launcher.plan import Others
from graft.launcher.presence import confirmed
from graft.launcher.status import Status
from graft.launcher.stopping import heed_stop
from graft.launcher.ticket import Ticket, read_ticket
from graft.signals import exit_when_told
from graft.terminal import say

_PAUSE_S = 5.0
Members = dict[Path, Ticket]


def members(sweep_dir: Path) -> Members:
    """The runs of a sweep that a job was submitted for, in their order."""
    if not sweep_dir.is_dir():
        return {}
    runs = sorted((path for path in sweep_dir.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    return {run: ticket for run in runs if (ticket := read_ticket(run))}


def confirmed_members(sweep_dir: Path) -> Members:
    """The same, where SageMaker was asked for those jobs of which it is not known whether they were created.

    Raises:
        CloudError: AWS cannot be asked; the message names the jobs that go on.
    """
    try:
        return {run: confirmed(ticket, run) for run, ticket in members(sweep_dir).items()}
    except CloudError as error:
        raise CloudError(f"{error}; {going_on(submitted(sweep_dir), sweep_dir)}") from error


def others_of(member: Path, size: int | None) -> Others:
    """The jobs of a sweep beside that of one of its runs.

    Args:
        member: the directory of that run.
        size: how many runs the sweep has; None where that is not known.
    """
    others = {run: ticket for run, ticket in members(member.parent).items() if run != member}
    # One that failed or was stopped may be submitted again.
    settled = sum(ticket.state not in ("Failed", "Stopped") for ticket in others.values())
    return Others(sum(ticket.most_usd for ticket in others.values()), max(size - settled, 1) if size else None)


def wait_for_turn(member: Path, most: int, *, pause: Callable[[float], None] = time.sleep) -> None:
    """Return when fewer than `most` jobs of the sweep go on.

    Raises:
        CloudError: AWS cannot be asked.
        RunError: the sweep was stopped meanwhile.
    """
    told = False
    with _interrupted_in_words(member.parent):
        while True:
            active = _still_active(member.parent)
            heed_stop(member)
            if len(active) < most:
                return
            if not told:
                say(f"{member.name}: waits for one of {len(active)} jobs to end (launcher.max_parallel={most})")
                told = True
            pause(_PAUSE_S)


def follow_sweep(
    sweep_dir: Path, end: Callable[[Ticket, Path], object], *, pause: Callable[[float], None] = time.sleep
) -> None:
    """Wait until all jobs of a sweep have ended; each is handed to `end` as it does.

    Raises:
        CloudError: AWS cannot be asked.
    """
    phases: dict[Path, str] = {}
    with _interrupted_in_words(sweep_dir):
        waiting = _unfinished(sweep_dir)
        while waiting:
            for run, ticket in list(waiting.items()):
                status = None if ticket.has_ended else _asked(waiting, run, pause)
                if status and phases.get(run) != status.phase:
                    phases[run] = status.phase
                    say(f"{run.name}: {ticket.name}: {status.phase or status.state}")
                if status is None or status.has_ended:
                    end(ended(ticket, status, run) if status else ticket, run)
                    del waiting[run]
            if waiting:
                pause(_PAUSE_S)


@contextmanager
def _interrupted_in_words(sweep_dir: Path) -> Iterator[None]:
    """Ctrl-C, SIGTERM or SIGHUP, whenever it comes, names the jobs that go on."""
    try:
        with exit_when_told():
            yield
    except (KeyboardInterrupt, SystemExit):
        if active := submitted(sweep_dir):
            say(going_on(active, sweep_dir))
        raise


def going_on(active: Members, sweep_dir: Path) -> str:
    """The jobs of a sweep that are billed, and the commands for them."""
    names = ", ".join(ticket.name for ticket in active.values())
    return (
        f"of this sweep go on and are billed: {names}; watch them with `python -m graft.launcher follow {sweep_dir}`, "
        f"end them with `python -m graft.launcher stop {sweep_dir}`"
    )


def submitted(sweep_dir: Path) -> Members:
    """The runs of a sweep whose jobs are not known to have ended."""
    return {run: ticket for run, ticket in members(sweep_dir).items() if not ticket.has_ended}


def _unfinished(sweep_dir: Path) -> Members:
    """The runs whose jobs go on, or whose files are not all here: a failed run may have a job that goes on with it."""
    return {
        run: ticket
        for run, ticket in confirmed_members(sweep_dir).items()
        if not ticket.has_ended or read_state(run).get("state") != "finished"
    }


def _asked(waiting: Members, run: Path, pause: Callable[[float], None]) -> Status:
    try:
        return ask_patiently(waiting[run], run, pause)
    except CloudError as error:
        raise CloudError(f"{error}; {going_on(waiting, run.parent)}") from error


def _still_active(sweep_dir: Path) -> Members:
    active = {}
    waiting = {run: ticket for run, ticket in confirmed_members(sweep_dir).items() if not ticket.has_ended}
    for run, ticket in waiting.items():
        status = _asked(waiting, run, time.sleep)
        if status.has_ended:
            ended(ticket, status, run)
            billed = spent(ticket, status.billed_seconds or 0)
            say(f"{run.name}: {ticket.name}: {status.state}, {billed}")
        else:
            active[run] = ticket
    return active
