"""What `python -m benchmarks.serving` measures; its figures are no test's."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from benchmarks import serving
from benchmarks.clients import Cost, Load

ERRORS = Counter({"503": 2})


@contextlib.contextmanager
def started() -> Iterator[tuple[int, mock.Mock]]:
    yield 8080, mock.Mock()


def test_photos_of_each_size_are_sent_by_each_number_of_clients(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("wait_until_answered", "check_setup"):
        monkeypatch.setattr(serving, name, mock.Mock())
    monkeypatch.setattr(serving, "photo", lambda size: b"%d x %d" % size)
    monkeypatch.setattr(serving, "drive", lambda port, body, clients, seconds: Load(1.0, [20.0] * clients, ERRORS))
    monkeypatch.setattr(serving, "watched", lambda process: contextlib.nullcontext(Cost(0.5, 120.0)))
    monkeypatch.setattr(serving, "engine_rate", lambda archive, seconds: 40.0)
    serving.compare({"ours": started}, {"fp32": Path("model.tar.gz")}, [1, 8, 32], seconds=1, rounds=1)
    lines = capsys.readouterr().out.splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ours")]
    assert [(row[1], row[2]) for row in table] == [
        (size, clients) for size in ("500 x 375", "1150 x 700", "4000 x 3000") for clients in ("1", "8", "32")
    ]
    # Photos/s, and at the end the most MB and the errors.
    assert [(row[3].split()[0], *row[-2:]) for row in table[:3]] == [
        ("1.0", "120", "2"),
        ("8.0", "120", "2"),
        ("32.0", "120", "2"),
    ]
