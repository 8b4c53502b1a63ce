"""What all tests share: where real photos lie, and the skip where they are absent."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure() -> None:
    """Heed Ctrl-C, also where a shell that started the tests in the background has it ignored: some tests send it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `real_data` tests, with the reason in the summary, where the photos are not there."""
    if REAL_DATA.is_dir():
        return
    skip = pytest.mark.skip(reason=f"needs real photos and weights in {REAL_DATA}")
    for item in items:
        if item.get_closest_marker("real_data"):
            item.add_marker(skip)
