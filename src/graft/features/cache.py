"""Features on disk: append-only, memory-mapped shards, one directory per function computed.

A shard is one .npy file of records (key, status, feature), written under another name and renamed,
so it exists whole or not at all. A key is the content hash of a photo: the same photo is computed
once, wherever it lies, and a changed one is another photo. A shard that other hands cut short is found
when it is read, removed, and computed again; bits that flip inside of one are not.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from graft.data.folder import DIGEST_BYTES, Digests
from graft.storage import write_atomic, write_text
from graft.terminal import say

FORMAT = 1
OK, TRUNCATED, UNDECODABLE = 0, 1, 2
# A process keeps every shard open and may often have 1024 files open, so small shards are joined.
JOIN_FROM = 16
JOINED_BYTES = 64_000_000


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

    def append(self, keys: Digests, status: NDArray[np.uint8], features: NDArray[np.float32]) -> None:
        """Write one shard: keys [n], status [n], features [n, width]."""
        records = np.empty(len(keys), self.record())
        records["key"], records["status"], records["feature"] = keys, status, features
        self._write(records)

    def read(self) -> Table:
        """All that was computed so far; marks the space as used, for `evict`.

        The lock must be held: what killed processes left and damaged shards are removed, small shards joined.
        """
        if not (self.path / "space.json").exists():
            write_text(self.path / "space.json", json.dumps({**self.describe, "width": self.width}, indent=2) + "\n")
        os.utime(self.path / "space.json")
        self._remove_remains()
        self._join()
        return Table([np.load(shard, mmap_mode="r") for shard in self._shards()], self.width)

    def _shards(self) -> list[Path]:
        return sorted(self.path.glob("*.npy"))

    def _write(self, records: NDArray[np.void]) -> None:
        buffer = io.BytesIO()
        np.save(buffer, records)
        write_atomic(self.path / f"{uuid.uuid4().hex}.npy", buffer.getvalue())

    def _remove_remains(self) -> None:
        for unfinished in self.path.glob(".*.npy.*"):  # as write_atomic names them
            unfinished.unlink()
        for path in self._shards():
            shard = _open(path)
            if shard is None or shard.dtype != self.record():
                say(f"{path} is damaged and was removed; its features are computed again")
                path.unlink()

    def _join(self) -> None:
        small = [path for path in self._shards() if path.stat().st_size < JOINED_BYTES / 2]
        group: list[Path] = []
        size = 0
        for path in small if len(small) >= JOIN_FROM else ():
            group.append(path)
            size += path.stat().st_size
            if size >= JOINED_BYTES or path == small[-1]:
                self._write(np.concatenate([np.load(joined) for joined in group]))
                # A process killed here leaves rows twice, which does no harm.
                for joined in group:
                    joined.unlink()
                group, size = [], 0


class Table:
    """The vectors of a space by key, read from memory-mapped shards as they are needed."""

    def __init__(self, shards: Sequence[NDArray[np.void]], width: int) -> None:
        self.shards, self.width = shards, width
        keys = [shard["key"] for shard in shards]
        all_keys = np.concatenate(keys) if keys else np.empty(0, f"S{DIGEST_BYTES}")
        self._order = np.argsort(all_keys, kind="stable")
        self._sorted = all_keys[self._order]
        self._ends = np.cumsum([len(shard) for shard in shards], dtype=np.int64)

    def rows(self, keys: Digests) -> NDArray[np.int64]:
        """Row of every key, int64 [N]; -1 where it has not been computed."""
        if not len(self._sorted):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._order[at], -1)

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
    shards = [shard for path in paths if (shard := _open(path)) is not None]
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


def _open(path: Path) -> NDArray[np.void] | None:
    """The records of a shard, memory-mapped; None where the file is damaged."""
    try:
        shard: NDArray[np.void] = np.load(path, mmap_mode="r")
    except (ValueError, EOFError):
        return None
    return shard
