"""Being told to end: what would end this process at once becomes an exception, so that it can end in good order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TOLD = (signal.SIGTERM, signal.SIGHUP)  # the latter when its terminal is closed


@contextmanager
def exit_when_told() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit with the code that a shell has for them, 143 and 129.

    One that is ignored stays so: nohup ignores SIGHUP. Python handles signals in its main thread alone; in another
    one this does nothing.
    """

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    is_main = threading.current_thread() is threading.main_thread()
    handled = [signum for signum in TOLD if is_main and signal.getsignal(signum) is not signal.SIG_IGN]
    before = {signum: signal.signal(signum, leave) for signum in handled}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
