"""What all tests share: where real photos lie, and the skip where they are absent."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure() -> None:
    """Heed Ctrl-C, also where a shell that started the tests in the background has it ignored: some tests send it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests, with the reason in the summary, where what they need is not there."""
    needs = {
        "real_data": (REAL_DATA.is_dir(), f"needs real photos and weights in {REAL_DATA}"),
        "smdebug": (find_spec("smdebug") is not None, "needs smdebug: make test-smdebug"),
    }
    for marker, (is_there, reason) in needs.items():
        for item in items:
            if not is_there and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
