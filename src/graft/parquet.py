"""Tables on disk in Parquet parts, each there whole or not at all, so that a table is read while it still grows."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from graft.errors import RunError
from graft.storage import write_atomic

if TYPE_CHECKING:
    import pyarrow


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
