"""docs/errors.md: every row is made to happen, and what graft says is compared word for word."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.bad_inputs import ROWS, SLOW, Answer, Place
from tests.composing import ROOT
from tests.s3server import running_server

DOCUMENT = ROOT / "docs" / "errors.md"
ROW = re.compile(r"\| `([a-z0-9-]+)` \| ([^|]+) \| ([^|]+) \| (\d|-) \|")
SPAN = re.compile(r"(?:`` (.*) ``|`([^`]*)`|([^`]*))")


def documented() -> dict[str, Answer]:
    """The rows of the tables: what is said, and the exit code."""
    found = {}
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("| `"):
            row = ROW.fullmatch(line)
            assert row, f"no row: {line}"
            assert row[1] not in found, f"{row[1]} is there twice"
            spans = [SPAN.fullmatch(part) for part in row[3].split("<br>")]
            lines = [span[span.lastindex or 0] for span in spans if span]
            found[row[1]] = Answer("\n".join(lines), None if row[4] == "-" else int(row[4]))
    return found


def with_placeholders(text: str, place: Place) -> str:
    """A message without what differs from run to run."""
    for path, name in ((place.root, "ROOT"), (place.run, "RUN"), (place.cache, "CACHE"), (place.folder, "FOLDER")):
        text = text.replace(str(path), name)
    text = re.sub(r"http://127\.0\.0\.1:\d+", "ENDPOINT", text)
    text = re.sub(r"\b[0-9a-f]{32}\.npy", "SHARD.npy", text)
    text = re.sub(r"/[0-9a-f]{16}/", "/KEY/", text)
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


@pytest.fixture(scope="module")
def server() -> Iterator[Callable[[], str]]:
    with contextlib.ExitStack() as stack:
        yield cache(lambda: stack.enter_context(running_server()))


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, server: Callable[[], str]) -> Iterator[Place]:
    # Not tmp_path: another user must get there, as root has no read-only folders.
    folder = Path(tempfile.mkdtemp(prefix="graft-errors-"))
    folder.chmod(0o755)
    try:
        with contextlib.ExitStack() as stack:
            yield Place(folder, monkeypatch, stack, server)
    finally:
        shutil.rmtree(folder)


def test_every_row_is_executed_and_there_are_enough_of_them() -> None:
    assert documented().keys() == ROWS.keys()
    assert len(ROWS) >= 45


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in sorted(ROWS)]
)
def test_what_is_said(name: str, place: Place) -> None:
    answer = ROWS[name](place)
    assert Answer(with_placeholders(answer.message, place), answer.code) == documented()[name]
