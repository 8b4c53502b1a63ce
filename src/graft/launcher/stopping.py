"""The end of a sweep that was asked for in another terminal: what is not submitted yet is not any more."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from graft.errors import RunError
from graft.storage import write_text

MARK = "stopped"  # in the directory of the sweep; holds when that was
# What the mark said when this process first looked: a stop of before is of an earlier command, which this one repeats.
_BEFORE: dict[Path, str] = {}


def mark_stopped(sweep_dir: Path) -> None:
    """Leave word for the command that submits the jobs of a sweep; to be done before they are stopped.

    A command writes job.json, then looks for the mark, then creates the job: whoever leaves the mark and then reads
    the files of the members meets every job.
    """
    write_text(sweep_dir / MARK, datetime.now(UTC).isoformat() + "\n")


def heed_stop(run_dir: Path) -> None:
    """Refuse to go on with a run whose sweep was stopped since this process first asked.

    Raises:
        RunError: it was.
    """
    sweep_dir = run_dir.parent
    said = _said(sweep_dir)
    if said != _BEFORE.setdefault(sweep_dir, said):
        raise RunError(
            f"run_dir={run_dir}: its sweep was stopped (`python -m graft.launcher stop {sweep_dir}`), so no further "
            "job of it is created; the same command with the same run_dir goes on with it"
        )


def _said(sweep_dir: Path) -> str:
    """What the mark says; nothing where there is none."""
    try:
        return (sweep_dir / MARK).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
