"""Which threads of this process are kept off some of its cores."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def bound_threads() -> list[int]:
    """Ids of the threads that may run on fewer cores than the calling one; empty where Linux does not tell."""
    found = []
    for place in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(ProcessLookupError):  # ended just now
            if os.sched_getaffinity(int(place.name)) < os.sched_getaffinity(0):
                found.append(int(place.name))
    return found
