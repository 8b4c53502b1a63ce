"""Tables on disk in Parquet parts, each there whole or not at all, so that a table is read while it still grows.

Each process of a resumed run writes a session of its own: a session-NNN.json and parts named after it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from graft.errors import RunError
from graft.storage import write_atomic, write_text

if TYPE_CHECKING:
    import pyarrow


def sessions(folder: Path) -> dict[int, Path]:
    """Number -> file of each session, in order; none where nothing was recorded."""
    return {int(path.stem.rpartition("-")[2]): path for path in sorted(folder.glob("session-*.json"))}


def read_session(path: Path) -> dict[str, Any]:
    """What `write_session` wrote.

    Raises:
        RunError: the file is damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read as a session of a recorder: {error}") from error
    return content


def write_session(folder: Path, number: int, content: Mapping[str, Any]) -> None:
    """Write plain JSON values of a session, or replace them."""
    write_text(folder / f"session-{number:03d}.json", json.dumps(content, indent=1) + "\n")


def next_session(folder: Path) -> int:
    """The number of a session that begins."""
    return max(sessions(folder), default=0) + 1


def part_path(folder: Path, table: str, session: int, number: int) -> Path:
    """Where a part of a table lies."""
    return folder / f"{table}-{session:03d}-{number:05d}.parquet"


def write_part(path: Path, columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> None:
    """Write columns of one length as a file."""
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(dict(columns)), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())


def read_part(path: Path) -> dict[str, NDArray[Any]]:
    """The columns that `write_part` wrote.

    Raises:
        RunError: the file is damaged.
    """
    from pyarrow import ArrowException, parquet

    try:
        part: pyarrow.Table = parquet.read_table(path)
    except (OSError, ArrowException) as error:
        raise RunError(f"{path} cannot be read: {error}; delete it, and the rest of the records counts") from error
    return {name: part.column(name).to_numpy() for name in part.column_names}
