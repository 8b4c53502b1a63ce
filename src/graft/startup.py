"""How a program starts sooner."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collecting() -> Iterator[None]:
    """No garbage is looked for meanwhile, nor ever after in what is there at the end: for imports, whose objects stay.

    It costs a sixth of a server's start; with torch and Lightning 0.5 s, and 0.7 s at the end of the process.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.freeze()
            gc.enable()
