"""Being told to end: what would end this process at once becomes an exception, so that it can end in good order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

TOLD = (signal.SIGTERM, signal.SIGHUP)  # the latter when its terminal is closed


@contextmanager
def exit_when_told() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit where they come, with the code that a shell has for them, 143 and 129."""

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    with handling(dict.fromkeys(TOLD, leave)):
        yield


@contextmanager
def handling(handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    """Handle signals so for a while.

    One that is ignored stays so: nohup ignores SIGHUP. Python handles signals in its main thread alone; in another
    one this does nothing.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handled = {signum: it for signum, it in handlers.items() if is_main and signal.getsignal(signum) != signal.SIG_IGN}
    before = {signum: signal.signal(signum, handler) for signum, handler in handled.items()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
