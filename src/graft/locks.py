"""One process at a time: what happens to the others is either said and waited for, or an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from graft.errors import GraftError
from graft.terminal import say


@contextmanager
def held(lock: FileLock, *, busy: str | GraftError) -> Iterator[None]:
    """Hold a lock; the kernel frees it when this process dies.

    Args:
        lock: of a local file system.
        busy: where another process has it: an error that is raised, or a line that is said before waiting.

    Raises:
        GraftError: `busy`.
    """
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if isinstance(busy, GraftError):
            raise busy from error
        say(busy)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
