"""One process at a time: what happens to the others is either told and waited for, or an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from graft.errors import GraftError


@contextmanager
def held(lock: FileLock, *, busy: GraftError | Callable[[], object]) -> Iterator[None]:
    """Hold a lock; the kernel frees it when this process dies.

    Args:
        lock: of a local file system.
        busy: where another process has it: an error that is raised, or what is called before waiting for it.

    Raises:
        GraftError: `busy`.
    """
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if isinstance(busy, GraftError):
            raise busy from error
        busy()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
