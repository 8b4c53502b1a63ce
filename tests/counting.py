"""train.py, but each process leaves in $COUNTS how many photos it decoded."""

from __future__ import annotations

import atexit
import os
import runpy
import sys
from pathlib import Path

from graft.data.digests import Digests
from graft.features.decode import Decoder

decoded = 0
new = Decoder._new


def counted(decoder: Decoder, digests: Digests) -> list[int]:
    """Which photos of a portion are to be decoded; counts them."""
    global decoded
    found = new(decoder, digests)
    decoded += len(found)
    return found


def leave_count() -> None:
    """Write the count under this process's rank."""
    Path(os.environ["COUNTS"], os.environ.get("RANK", "0")).write_text(str(decoded))


if __name__ == "__main__":
    atexit.register(leave_count)
    Decoder._new = counted  # type: ignore[method-assign, assignment]
    sys.argv[0] = str(Path(__file__).resolve().parents[1] / "train.py")
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
