"""Watching a job until it ends: its state, its log, and what Ctrl-C means."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from graft.errors import CloudError
from graft.launcher.calls import Pause, client, explained, is_passing, patiently, pause_after
from graft.launcher.logs import GROUP, JobLog
from graft.launcher.status import Status, ask
from graft.launcher.ticket import Ticket, write_ticket
from graft.signals import exit_when_told
from graft.terminal import say, status_line

LATE_LINES_S = 2.0  # the last lines of a job come to CloudWatch after its end


def how_to_follow(ticket: Ticket, run_dir: Path) -> str:
    """The commands for a job that goes on by itself."""
    return (
        f"{ticket.name} goes on and is billed; watch it and fetch its run with `python -m graft.launcher follow "
        f"{run_dir}`, end it with `python -m graft.launcher stop {run_dir}`"
    )


def follow(ticket: Ticket, run_dir: Path, *, pause: Pause = time.sleep) -> Ticket:
    """Show a job until it has ended; Ctrl-C asks whether to stop it, SIGTERM and SIGHUP end the watching.

    Args:
        ticket: of the job.
        run_dir: local, where job.json is.
        pause: waits so many seconds.

    Returns:
        The ticket with its state and what it cost.

    Raises:
        CloudError: AWS has not answered for ten minutes, or denies.
        KeyboardInterrupt, SystemExit: the watching ends, and the person has been told that the job goes on.
    """
    try:
        with exit_when_told():
            return ended(ticket, _watched(ticket, run_dir, pause), run_dir)
    except SystemExit:
        say(how_to_follow(ticket, run_dir))
        raise


def ended(ticket: Ticket, status: Status, run_dir: Path) -> Ticket:
    """The ticket of a job that has ended, kept in job.json."""
    usd = None if status.billed_seconds is None else ticket.usd(status.billed_seconds)
    reason = "it ran out of the time that launcher.max_hours or budget.usd allows" if status.out_of_time else ""
    return write_ticket(
        run_dir,
        replace(
            ticket,
            state=status.state,
            reason=reason or status.reason,
            billed_seconds=status.billed_seconds,
            actual_usd=usd,
        ),
    )


def ask_patiently(ticket: Ticket, run_dir: Path, pause: Pause = time.sleep) -> Status:
    """The state of a job; where AWS does not answer, asked again for ten minutes, which is told once.

    Raises:
        CloudError: AWS denies, or has not answered for so long; the message says that the job goes on.
    """
    try:
        return patiently(lambda: ask(ticket), pause)
    except CloudError as error:
        raise CloudError(f"{error}; {how_to_follow(ticket, run_dir)}") from error


def stop(ticket: Ticket) -> None:
    """Ask SageMaker to end a job; it may take a minute or two.

    Raises:
        CloudError: it cannot be asked.
    """
    service = client("sagemaker", ticket.region)
    with explained(f"stopping {ticket.name}"):
        if ticket.kind == "tuning":
            service.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=ticket.name)
        else:
            service.stop_training_job(TrainingJobName=ticket.name)


def spent(ticket: Ticket, seconds: float) -> str:
    """What so many seconds of one machine cost, in words."""
    usd = ticket.usd(seconds)
    return "at an unknown price" if usd is None else f"${usd:.2f}"


def _watched(ticket: Ticket, run_dir: Path, pause: Pause) -> Status:
    """The state in which the job ended; Ctrl-C asks."""
    log = JobLog(ticket.name, ticket.region) if ticket.kind == "training" else None
    while True:
        try:
            return _watch(ticket, run_dir, log, pause)
        except KeyboardInterrupt:
            if not _wants_to_go_on(ticket, run_dir):
                raise


def _watch(ticket: Ticket, run_dir: Path, log: JobLog | None, pause: Pause) -> Status:
    """The state in which the job ended."""
    shown = ""
    started = time.monotonic()
    with status_line("asking SageMaker") as line:
        while True:
            status = ask_patiently(ticket, run_dir, pause)
            if status.phase != shown:
                say(f"{ticket.name}: {status.phase or status.state}")
                shown = status.phase
            # After the question, so that the last lines are not missed.
            log = _shown(log)
            line(_progress(ticket, status))
            if status.has_ended:
                if log:
                    pause(LATE_LINES_S)
                    _shown(log)
                return status
            pause(pause_after(time.monotonic() - started))


def _shown(log: JobLog | None) -> JobLog | None:
    """Print what is new of a log; None where it can never be read: the job does not depend on it. Told once."""
    if log is None:
        return None
    try:
        for text in log.new_lines():
            say(text)
    except CloudError as error:
        if not is_passing(error):
            say(f"{error}; watching goes on without it")
            return None
        if not log.is_missed:
            say(f"{error}; watching goes on, and the lines stay in CloudWatch ({GROUP})")
            log.is_missed = True
    return log


def _progress(ticket: Ticket, status: Status) -> str:
    # An upper bound while the job runs: waiting for machines is not billed.
    so_far = spent(ticket, status.elapsed_s * ticket.instances) if ticket.kind == "training" else ""
    planned = ticket.planned_minutes
    of = f" of {planned[0]:.0f} .. {planned[1]:.0f} planned" if planned else ""
    return f"{status.phase}, {status.elapsed_s / 60:.0f} min{of}" + (f", at most {so_far} so far" if so_far else "")


def _wants_to_go_on(ticket: Ticket, run_dir: Path) -> bool:
    """What a person wants after Ctrl-C; without a terminal to ask at, only the watching ends."""
    if not sys.stdin.isatty():
        say(how_to_follow(ticket, run_dir))
        return False
    try:
        say(f"\n{ticket.name} is running and billed. [s]top it, [w]atch no more, or Enter to go on watching?")
        answer = sys.stdin.readline().strip().lower()
        if answer.startswith("s"):
            say(_stopped(ticket, run_dir))
            return True
    except KeyboardInterrupt:
        answer = "w"
    if answer.startswith("w"):
        say(how_to_follow(ticket, run_dir))
        return False
    return True


def _stopped(ticket: Ticket, run_dir: Path) -> str:
    """Stop a job, which may have ended while the person thought about it; what became of it, in words.

    Raises:
        CloudError: it goes on.
    """
    try:
        stop(ticket)
    except CloudError as error:
        if not _has_ended(ticket):
            raise CloudError(f"{error}; {how_to_follow(ticket, run_dir)}") from error
        return f"{ticket.name} has ended meanwhile"
    return f"{ticket.name} is being stopped; this waits until nothing is billed any more"


def _has_ended(ticket: Ticket) -> bool:
    """Whether a job is known to have ended."""
    try:
        return ask(ticket).has_ended
    except CloudError:
        return False
