"""Features on disk: one directory of shards per function computed.

A record is (key, status, feature). A key is the content hash of a photo: the same photo is computed
once, wherever it lies, and a changed one is another photo.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from graft.data.digests import DIGEST_BYTES, Digests
from graft.shards import Keys, Shards, open_shard
from graft.storage import write_text

FORMAT = 1
OK, TRUNCATED, UNDECODABLE = 0, 1, 2


@dataclass(frozen=True)
class Space:
    """One function from a photo to a vector, and the directory of what it gave so far.

    Attributes:
        root: directory of all spaces.
        describe: everything the vector depends on but the photo, as plain JSON values.
        width: numbers per vector.
        dtype: how they are stored: float32 or float16.
    """

    root: Path
    describe: dict[str, Any]
    width: int
    dtype: str

    @property
    def key(self) -> str:
        """Hex digest of the description."""
        text = json.dumps({**self.describe, "width": self.width, "dtype": self.dtype, "format": FORMAT}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def path(self) -> Path:
        """The directory of this space."""
        return self.root / self.key

    def lock(self) -> FileLock:
        """Held by the process that computes; the kernel frees it when that process dies."""
        self.root.mkdir(parents=True, exist_ok=True)
        return _lock(self.root, self.key)

    def record(self) -> np.dtype[np.void]:
        """The dtype of one shard record."""
        return np.dtype([("key", f"S{DIGEST_BYTES}"), ("status", "u1"), ("feature", self.dtype, (self.width,))])

    @property
    def shards(self) -> Shards:
        """Where the records are."""
        return Shards(self.path, self.record())

    def append(self, keys: Digests, status: NDArray[np.uint8], features: NDArray[np.float32]) -> None:
        """Write one shard: keys [n], status [n], features [n, width]."""
        records = np.empty(len(keys), self.record())
        records["key"], records["status"], records["feature"] = keys, status, features
        self.shards.append(records)

    def tidy(self) -> None:
        """Make the directory ready for use and mark it as used, for `evict`. The lock must be held."""
        if not (self.path / "space.json").exists():
            write_text(self.path / "space.json", json.dumps({**self.describe, "width": self.width}, indent=2) + "\n")
        os.utime(self.path / "space.json")
        self.shards.tidy()

    def table(self) -> Table:
        """All that was computed so far."""
        return Table(self.shards.open(), self.width)


class Table:
    """The vectors of a space by key, read from memory-mapped shards as they are needed."""

    def __init__(self, shards: Sequence[NDArray[np.void]], width: int) -> None:
        self.shards, self.width = shards, width
        self._keys = Keys([shard["key"] for shard in shards])
        self._ends = np.cumsum([len(shard) for shard in shards], dtype=np.int64)

    def rows(self, keys: Digests) -> NDArray[np.int64]:
        """Row of every key, int64 [N]; -1 where it has not been computed."""
        return self._keys.rows(keys)

    def status(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """OK, TRUNCATED or UNDECODABLE, uint8 [n]."""
        out = np.empty(len(rows), np.uint8)
        for shard, mine, local in self._by_shard(rows):
            out[mine] = shard["status"][local]
        return out

    def features(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors, float32 [n, width]."""
        out = np.empty((len(rows), self.width), np.float32)
        for shard, mine, local in self._by_shard(rows):
            out[mine] = shard["feature"][local]
        return out

    def _by_shard(self, rows: NDArray[np.int64]) -> list[tuple[NDArray[np.void], NDArray[np.intp], NDArray[np.int64]]]:
        owner = np.searchsorted(self._ends, rows, side="right")
        starts = self._ends - [len(shard) for shard in self.shards]
        found = []
        for number in np.unique(owner):
            mine = np.flatnonzero(owner == number)
            found.append((self.shards[number], mine, rows[mine] - starts[number]))
        return found


@dataclass(frozen=True)
class Usage:
    """A space as `python -m graft.features list` shows it; `used` in seconds since 1970."""

    key: str
    describe: dict[str, Any]
    photos: int
    bytes: int
    used: float


def usage(root: Path) -> list[Usage]:
    """Every space below `root`, the most recently used first."""
    found = []
    for marker in root.glob("*/space.json"):
        with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
            found.append(_measure(marker))
    return sorted(found, key=lambda space: -space.used)


def _measure(marker: Path) -> Usage:
    paths = list(marker.parent.glob("*.npy"))
    shards = [shard for path in paths if (shard := open_shard(path)) is not None]
    return Usage(
        key=marker.parent.name,
        describe=json.loads(marker.read_text()),
        photos=sum(len(shard) for shard in shards),
        bytes=sum(path.stat().st_size for path in paths),
        used=marker.stat().st_mtime,
    )


def evict(root: Path, max_bytes: float, keep: Sequence[str]) -> list[str]:
    """Remove the least recently used spaces until the rest fits; returns their keys.

    Spaces in `keep` and spaces some process computes stay. A process that still reads a removed
    one is not disturbed: its maps hold the files.
    """
    spaces = usage(root)
    total, removed = sum(space.bytes for space in spaces), []
    for space in reversed(spaces):
        if total <= max_bytes:
            break
        if space.key not in keep and remove(root, space.key):
            total -= space.bytes
            removed.append(space.key)
    return removed


def remove(root: Path, key: str) -> bool:
    """Remove a space unless some process computes it; returns whether it went."""
    try:
        with _lock(root, key).acquire(timeout=0):
            shutil.rmtree(root / key)
    except (Timeout, FileNotFoundError):  # computed, or removed, by another process
        return False
    return True


def _lock(root: Path, key: str) -> FileLock:
    # Beside the space: the lock of a directory that is removed must outlive it.
    return FileLock(root / f"{key}.lock")
