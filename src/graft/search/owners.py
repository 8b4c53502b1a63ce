"""Who runs a trial: a process by a name that no other has had, and whether it is still there."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

PROC = Path("/proc")


def this_process() -> str:
    """A name that no other process has had since the machine started; a container counts as a machine."""
    return f"{_machine()}/{os.getpid()}/{_started(os.getpid())}"


def is_running(owner: str) -> bool | None:
    """Whether a process is there; None of one of another machine."""
    machine, pid, started = owner.rsplit("/", 2)
    return None if machine != _machine() else _started(int(pid)) == started


def _machine() -> str:
    if not PROC.exists():
        return f"{uuid.getnode():x}"
    boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.readlink(PROC / 'self/ns/pid')}"


def _started(pid: int) -> str:
    """When a process started; empty where there is none.

    On Linux in clock ticks since boot: psutil adds the time of boot, which moves when the clock is set.
    """
    if not PROC.exists():
        return _started_elsewhere(pid)
    try:
        # the second field is the program's name in parentheses, which may hold spaces
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _started_elsewhere(pid: int) -> str:
    import psutil

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return ""
