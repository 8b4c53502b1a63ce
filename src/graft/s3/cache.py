"""Objects kept on disk under the name of their version, within a size limit that several processes share."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from graft.errors import DataError

_CHECK_BYTES = 4
# Another look at the directory each time a quarter of the free room is used: four processes that know nothing of each
# other stay within it. With this share of the limit left it counts as full.
_SHARE_BETWEEN_LOOKS = 0.25
_FULL_SHARE = 0.02
_EVICTED_SHARE = 0.1  # freed at once, so that the next look is not the next object's


class ObjectCache:
    """A folder of objects, each whole and with a CRC-32 behind it; `max_bytes` is what it may take.

    Where there is no room, what was not used since this object was made is deleted, the longest unused first. If that
    does not help, new objects are not kept: reading more than fits in a circle would otherwise never find anything.
    """

    def __init__(self, directory: Path, max_bytes: float) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self._start = time.time()
        self._lock = threading.Lock()
        self._room: float = 0  # bytes that may be added before the next look
        self._full = False
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_lock": None, "_process": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def get(self, bucket: str, key: str, tag: bytes, size: int) -> bytes | None:
        """The content of a version; None where it is not kept, or is damaged."""
        path = self._path(bucket, key, tag)
        try:
            content = path.read_bytes()
            if os.stat(path).st_mtime < self._start:
                os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{path}: a kept object cannot be read: {error.strerror}; delete the folder") from error
        data, check = content[:-_CHECK_BYTES], content[-_CHECK_BYTES:]
        return data if len(data) == size and check == _check(data) else None

    def put(self, bucket: str, key: str, tag: bytes, data: bytes) -> None:
        """Keep the content of a version, if there is room.

        Raises:
            DataError: the folder cannot be written.
        """
        path = self._path(bucket, key, tag)
        try:
            if self._reserve(len(data) + _CHECK_BYTES):
                _write(path, data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(f"{self.directory}: objects cannot be kept there: {error.strerror}") from error
            self._full = True

    def _path(self, bucket: str, key: str, tag: bytes) -> Path:
        whole = b"\0".join((bucket.encode(), key.encode(errors="surrogateescape"), tag))
        name = hashlib.blake2b(whole, digest_size=20).hexdigest()
        return self.directory / name[:2] / name

    def _reserve(self, size: int) -> bool:
        if self._process != os.getpid():
            # After a fork: another thread may have held the lock, and the room is the parent's.
            self._lock, self._room, self._process = threading.Lock(), 0, os.getpid()
        with self._lock:
            if not self._full and size > self._room:
                self._look(size)
            if self._full or size > self._room:
                return False
            self._room -= size
            return True

    def _look(self, size: int) -> None:
        """See how much there is, and make room where it is little."""
        free = self.max_bytes - sum(bytes_ for _, bytes_, _ in self._files())
        least = max(_FULL_SHARE * self.max_bytes, size)
        if free < least:
            free += self._evict(max(_EVICTED_SHARE * self.max_bytes, size) - free)
        self._full = free < least
        self._room = max(free * _SHARE_BETWEEN_LOOKS, min(size, free))

    def _evict(self, wanted: float) -> int:
        """Delete what this run has not used, the longest unused first; returns the bytes freed."""
        freed = 0
        for _, bytes_, path in sorted(file for file in self._files() if file[0] < self._start):
            if freed >= wanted:
                break
            Path(path).unlink(missing_ok=True)
            freed += bytes_
        return freed

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """When last used, size and path of each file."""
        for folder in os.scandir(self.directory) if self.directory.is_dir() else ():
            for entry in os.scandir(folder.path) if folder.is_dir() else ():
                try:
                    found = entry.stat()
                except FileNotFoundError:  # deleted by another process
                    continue
                yield found.st_mtime, found.st_size, entry.path


def _check(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_CHECK_BYTES, "big")


def _write(path: Path, data: bytes) -> None:
    """Atomically, but not flushed to the disk: the check finds what a power cut spoils, and it is fetched again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.write(_check(data))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
