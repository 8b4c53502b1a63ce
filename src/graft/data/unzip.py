"""A zip file that somebody else made, unpacked without trusting its names, kinds or sizes."""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from graft.data.files import is_ignored
from graft.errors import DataError

MAX_RATIO = 100  # unpacked bytes per byte of the zip file: photos have about 1, a bomb of one layer up to 1,032
MAX_BYTES = 200 * 10**9
MAX_ENTRIES = 5_000_000
BLOCK = 4096
CHUNK = 1 << 20
SPLITS = frozenset({"train", "valid", "val", "test"})
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What zipfile and zlib raise on damaged files; an OSError where a place in the file is before its beginning.
_UNREADABLE = (zipfile.BadZipFile, OSError, zlib.error, EOFError, ValueError, LookupError, NotImplementedError)


@dataclass(frozen=True)
class Member:
    """A file in the zip, and where it goes: relative, of plain parts, no two the same."""

    info: zipfile.ZipInfo
    path: str


@dataclass(frozen=True)
class Contents:
    """The files worth unpacking, in the order of the zip."""

    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Bytes when unpacked."""
        return sum(member.info.file_size for member in self.members)

    @property
    def disk_size(self) -> int:
        """Bytes on a disk, where a file takes whole blocks."""
        return sum(-(-member.info.file_size // BLOCK) * BLOCK for member in self.members)


def read_contents(archive: Path) -> Contents:
    """What is in a zip file, all of it checked before any of it is unpacked.

    What macOS, Windows and hidden files leave (`__MACOSX`, `.DS_Store`, `._*`) is left out. One folder around
    everything is taken away, unless it is a split.

    Args:
        archive: the file.

    Raises:
        DataError: damaged, or an entry is refused.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = opened.infolist()
    except _UNREADABLE as error:
        raise DataError(f"the zip file is damaged or no zip file ({error})") from error
    _check_sizes(infos, archive.stat().st_size)
    placed = [(info, _parts(info)) for info in infos]
    files = [
        (info, parts)
        for info, parts in placed
        if not info.orig_filename.endswith("/") and not any(is_ignored(part) for part in parts)
    ]
    if not files:
        raise DataError("the zip file holds no files")
    around = _folder_around([parts for _, parts in files])
    members = tuple(Member(info, "/".join(parts[around:])) for info, parts in files)
    _check_distinct(members)
    return Contents(members)


def unpack(archive: Path, contents: Contents, folder: Path, progress: Callable[[int], None]) -> None:
    """Write the files below a new folder; the zip's own modes, owners and times are not taken over.

    Args:
        archive: the file.
        contents: of it, from `read_contents`.
        folder: is made, and must not be there.
        progress: called with the bytes written.

    Raises:
        DataError: a file is damaged: its CRC or its size is not the announced one.
        OSError: it cannot be written.
    """
    folder.mkdir()
    with zipfile.ZipFile(archive) as opened:
        for member in contents.members:
            path = folder / member.path
            path.parent.mkdir(parents=True, exist_ok=True)
            written = 0
            with path.open("xb") as file:
                for chunk in _read(opened, member.info):
                    written += len(chunk)
                    file.write(chunk)
                    progress(len(chunk))
            if written != member.info.file_size:
                raise DataError(f"the zip file is damaged: {_shown(member.info)} has not the size that it announces")


def _read(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The content in chunks; zipfile gives no more bytes than announced and checks the CRC at the end."""
    try:
        with opened.open(info) as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except _UNREADABLE as error:
        raise DataError(f"the zip file is damaged: {_shown(info)} cannot be unpacked ({error})") from error


def _shown(info: zipfile.ZipInfo) -> str:
    """The name of an entry, safe for a terminal."""
    return repr(info.orig_filename)


def _check_sizes(infos: list[zipfile.ZipInfo], archive_bytes: int) -> None:
    if len(infos) > MAX_ENTRIES:
        raise DataError(f"the zip file is refused: {len(infos):,} entries; accepted are up to {MAX_ENTRIES:,}")
    total, packed = sum(info.file_size for info in infos), sum(info.compress_size for info in infos)
    limit = min(MAX_BYTES, MAX_RATIO * archive_bytes)
    if total > limit:
        raise DataError(
            f"the zip file is refused: it unpacks to {total:,} bytes, a decompression bomb; accepted are up to "
            f"{limit:,}, {MAX_RATIO} times its own size and no more than {MAX_BYTES:,}"
        )
    if packed > archive_bytes:
        raise DataError(
            f"the zip file is refused: its entries overlap or are cut off: {packed:,} bytes in a file of "
            f"{archive_bytes:,}"
        )


def _parts(info: zipfile.ZipInfo) -> tuple[str, ...]:
    """The parts of an entry's path, once the entry is known to be a plain file or folder inside."""
    raw = info.orig_filename
    parts = tuple(part for part in raw.split("/") if part not in ("", "."))
    outside = raw.startswith("/") or ".." in parts or "\\" in raw or re.match(r"[A-Za-z]:", raw)
    if outside or not parts:
        raise _refused(info, "has a path that could lead out of the folder")
    if re.search(r"[\x00-\x1f\x7f]", raw):
        raise _refused(info, "has a control character in its name")
    if info.flag_bits & 0x41:
        raise _refused(info, "is encrypted")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused(info, "is a link or a device, not a plain file")
    if info.compress_type not in _METHODS:
        raise _refused(info, f"is packed by method {info.compress_type}, not stored or deflated")
    return parts


def _refused(info: zipfile.ZipInfo, why: str) -> DataError:
    return DataError(f"the zip file is refused: its entry {_shown(info)} {why}; nothing was unpacked")


def _folder_around(paths: list[tuple[str, ...]]) -> int:
    """1 where everything lies in one folder that is no split, else 0."""
    tops = {parts[0] for parts in paths}
    return int(len(tops) == 1 and tops.isdisjoint(SPLITS) and all(len(parts) > 1 for parts in paths))


def _check_distinct(members: tuple[Member, ...]) -> None:
    files: set[str] = set()
    folders: set[str] = set()
    for member in members:
        if member.path in files:
            raise _refused(member.info, "is there twice")
        files.add(member.path)
        parent = os.path.dirname(member.path)
        while parent and parent not in folders:
            folders.add(parent)
            parent = os.path.dirname(parent)
    if both := sorted(files & folders):
        raise DataError(f"the zip file is refused: its entry {both[0]!r} is a file and a folder; nothing was unpacked")
