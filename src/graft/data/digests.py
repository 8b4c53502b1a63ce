"""Content hashes of photos, and an index that saves reading a photo again to know its own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from graft.shards import Keys, Shards
from graft.stores import TAG_BYTES, Tags

DIGEST_BYTES = 16
UNKNOWN = b""

Digests = NDArray[np.bytes_]  # [N], dtype S16: one content hash per photo; no bytes where it is not known


def digest(data: bytes) -> bytes:
    """BLAKE2b of a photo's bytes, 16 bytes.

    numpy's S16 pads with zero bytes, so two digests compare equal exactly where their bytes do.
    """
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def fingerprint(digests: Digests) -> str:
    """Hex digest of a set of photos, whatever their order and names."""
    return hashlib.blake2b(np.sort(digests).tobytes(), digest_size=DIGEST_BYTES).hexdigest()


class DigestIndex:
    """Tag of a file -> content hash of its photo, kept below a directory and shared by all runs."""

    def __init__(self, directory: Path) -> None:
        record = np.dtype([("tag", f"S{TAG_BYTES}"), ("digest", f"S{DIGEST_BYTES}")])
        self._directory, self._shards = directory, Shards(directory / "digests", record)

    def look_up(self, tags: Tags) -> Digests:
        """Content hashes of the files with these tags, bytes [N]; UNKNOWN where a file has to be read."""
        with self._lock():
            self._shards.tidy()
            shards = self._shards.open()
        rows = Keys([shard["tag"] for shard in shards]).rows(tags)
        known = (rows >= 0) & (tags != UNKNOWN)
        found = np.full(len(tags), UNKNOWN, f"S{DIGEST_BYTES}")
        if known.any():
            found[known] = np.concatenate([shard["digest"] for shard in shards])[rows[known]]
        return found

    def remember(self, tags: Tags, digests: Digests) -> None:
        """Keep the content hashes of files; those without a tag are not kept."""
        named = tags != UNKNOWN
        if named.any():
            records = np.empty(np.count_nonzero(named), self._shards.dtype)
            records["tag"], records["digest"] = tags[named], digests[named]
            with self._lock():  # who tidies would take an unfinished shard for what a kill left
                self._shards.append(records)

    def _lock(self) -> FileLock:
        self._directory.mkdir(parents=True, exist_ok=True)
        return FileLock(self._directory / "digests.lock")
