"""Where bytes live: one small seam between graft and the places it reads and writes."""

from __future__ import annotations

import os
import stat
import time
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from graft.errors import DataError

TAG_BYTES = 56
SETTLED_S = 2.0  # coarsest clock of a file system in use; a file changed later than that may change again unseen

Tags = NDArray[np.bytes_]  # [N], dtype S56: what tells one version of a file from another


@dataclass(frozen=True)
class Listing:
    """The files below a place: names with `/` between folders, sorted, and their tags, bytes [N].

    Two files with the same tag have the same content, in this run and in later ones. A tag of no bytes
    makes no such promise. `odd` are names of what is no file: links that lead nowhere or to a folder, pipes.
    """

    names: tuple[str, ...]
    tags: Tags
    odd: tuple[str, ...] = ()


class Store(Protocol):
    """A tree of files somewhere, to read from."""

    @property
    def location(self) -> str:
        """The place as a person would type it."""
        ...

    @property
    def readers(self) -> int:
        """Reads worth having in flight at once; 1 where reading is as fast as decoding."""
        ...

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders in a folder, sorted; none where it does not exist."""
        ...

    def list(self, folder: str) -> Listing:
        """All files below a folder, however deep; names are relative to it.

        Raises:
            DataError: the place cannot be listed.
        """
        ...

    def read(self, name: str, tag: bytes = b"") -> bytes:
        """The content of a file.

        Args:
            name: relative to the store.
            tag: the version wanted, from `list`; an empty one takes what is there.

        Raises:
            DataError: it cannot be read, or is no longer that version.
        """
        ...


@dataclass(frozen=True)
class LocalStore:
    """A folder of this machine. A tag is the file's device, inode, size, times of change and hashed name."""

    root: Path
    readers: int = 1

    @property
    def location(self) -> str:
        """The folder's path."""
        return str(self.root)

    def folders(self, folder: str = "") -> list[str]:
        """See `Store`; a linked folder counts."""
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise DataError(f"{self.root / folder} cannot be listed: {error.strerror}") from error

    def list(self, folder: str) -> Listing:
        """See `Store`. A linked folder is followed at the top, not below: it could lead round in a circle."""
        settled = time.time_ns() - int(SETTLED_S * 1e9)
        names: list[str] = []
        odd: list[str] = []
        versions = array("Q")
        for name, entry in _walk(str(self.root / folder), ""):
            try:
                found = entry.stat()
            except OSError:
                odd.append(name)
                continue
            if not stat.S_ISREG(found.st_mode):
                odd.append(name)
                continue
            names.append(name)
            if found.st_mtime_ns < settled and found.st_ctime_ns < settled:
                versions.extend(_version(name, found))
            else:  # also where the clock of the file system is ahead of ours
                versions.extend((0,) * 6)
        tags = _padded(np.frombuffer(versions, np.uint64).reshape(len(names), 6))
        order = sorted(range(len(names)), key=names.__getitem__)
        return Listing(tuple(names[at] for at in order), tags[order], tuple(sorted(odd)))

    def read(self, name: str, tag: bytes = b"") -> bytes:
        """See `Store`; what is there is read, whichever version it is."""
        try:
            with open(f"{self.root}/{name}", "rb") as file:
                return file.read()
        except OSError as error:
            raise DataError(f"{self.root / name} cannot be read: {error.strerror}") from error


def _walk(directory: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below a directory but its folders, each with its name relative to the first directory."""
    try:
        with os.scandir(directory) as found:
            entries = [(entry, entry.is_dir(follow_symlinks=not prefix)) for entry in found]
    except OSError as error:
        raise DataError(f"{directory} cannot be listed: {error.strerror}") from error
    for entry, is_folder in entries:
        if is_folder:
            yield from _walk(entry.path, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry


def _version(name: str, found: os.stat_result) -> tuple[int, ...]:
    """What tells a file and its content from all others, each below 2**64, which inodes may come close to."""
    # Some mounts number their files anew each time, and some know seconds only: there the name must count.
    times = found.st_mtime_ns % 2**64, found.st_ctime_ns % 2**64  # before 1970 they are negative
    return found.st_dev, found.st_ino, found.st_size, *times, zlib.crc32(os.fsencode(name))


def _padded(versions: NDArray[np.uint64]) -> Tags:
    """uint64 [N, 6] -> tags; no bytes where all are zero."""
    tags = np.zeros((len(versions), TAG_BYTES // 8), np.uint64)
    tags[:, : versions.shape[1]] = versions
    return tags.view(f"S{TAG_BYTES}")[:, 0]
