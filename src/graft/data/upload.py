"""A folder of photos -> S3: in parallel, only what changed, and verified by a listing at the end. No torch.

Objects appear whole or not at all, so an upload that was killed goes on with the same command.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from graft.data.files import is_ignored
from graft.errors import DataError
from graft.s3 import ProgressBar, S3Store
from graft.storage import file_md5

Result = TypeVar("Result")

_SENDERS = 16
_KEY_BYTES = 1024  # what S3 takes


@dataclass(frozen=True)
class UploadReport:
    """What an upload did. Counts are of files; `sent_bytes` of what was sent.

    `extra` are objects below the target that SRC does not have, sorted: they stay, and training would take them.
    """

    sent: int
    sent_bytes: int
    unchanged: int
    extra: tuple[str, ...]


@dataclass(frozen=True)
class _File:
    name: str
    path: Path
    size: int


def upload(source: Path, target: str, *, progress: ProgressBar | None = None) -> UploadReport:
    """Make the objects below `target` those of a folder: what is missing or has another content is sent.

    Hidden files and those that the operating system leaves are passed over; nothing is ever deleted. Contents are
    compared by MD5: S3's ETag, or where that is none (encryption with KMS, objects sent in parts) what was noted with
    the object when it was sent.

    Args:
        source: a folder, of any layout.
        target: s3://BUCKET/PREFIX; the bucket is there already.
        progress: makes a bar of a title and a total in bytes.

    Raises:
        DataError: the folder cannot be read or changes meanwhile, S3 cannot be written, or afterwards lacks a file.
    """
    store = S3Store(target)
    files = list(_find(source))
    if not files:
        raise DataError(f"SRC={source}: no files in it; accepted is a folder of photos")
    there = _tags(store)
    with progress(f"uploading to {target}", sum(file.size for file in files)) if progress else nullcontext() as advance:
        done = _each(files, lambda file: _send(store, file, there.get(file.name), advance or _ignore))
    digests = {file.name: digest for file, (digest, _) in zip(files, done, strict=True)}
    extra = _verify(store, files, digests)
    sent = [file.size for file, (_, was_sent) in zip(files, done, strict=True) if was_sent]
    return UploadReport(len(sent), sum(sent), len(files) - len(sent), extra)


def _find(source: Path) -> Iterator[_File]:
    """The files below a folder, by name. Links to folders are followed where splits and classes are."""
    if not source.is_dir():
        raise DataError(
            f"SRC={source}: {'not a folder' if source.exists() else 'no such folder'}; accepted is a folder"
        )
    for folder, folders, names in os.walk(source, onerror=_raise, followlinks=True):
        inside = Path(folder).relative_to(source)
        deep = len(inside.parts) >= 2
        folders[:] = sorted(f for f in folders if not is_ignored(f) and not (deep and (Path(folder) / f).is_symlink()))
        for name in sorted(names):
            if not is_ignored(name):
                yield _file(Path(folder) / name, (inside / name).as_posix())


def _file(path: Path, name: str) -> _File:
    try:
        key_bytes = len(name.encode())
    except UnicodeEncodeError as error:
        shown = os.fsencode(name).decode(errors="backslashreplace")
        raise DataError(f"SRC: the name {shown} is not UTF-8, which S3 asks for; rename it") from error
    if key_bytes > _KEY_BYTES:
        raise DataError(f"SRC: the name {name[:60]}... has {key_bytes} bytes; accepted is at most {_KEY_BYTES}")
    try:
        return _File(name, path, path.stat().st_size)
    except OSError as error:
        raise DataError(f"SRC: {path} cannot be read: {error.strerror}") from error


def _raise(error: OSError) -> None:
    raise DataError(f"SRC: {error.filename} cannot be read: {error.strerror}") from error


def _tags(store: S3Store) -> dict[str, bytes]:
    listing = store.present()
    return dict(zip(listing.names, listing.tags.tolist(), strict=True))


def _send(store: S3Store, file: _File, tag: bytes | None, advance: Callable[[int], None]) -> tuple[str, bool]:
    """The MD5 of a file, and whether it had to be sent."""
    before = _state(file.path)
    digest = _md5(file.path)
    changed = tag is None or not store.holds(file.name, tag, file.size, digest)
    if changed:
        try:
            store.put(file.name, file.path, digest)
        except OSError as error:
            raise DataError(f"SRC: {file.path} cannot be read: {error.strerror}") from error
    if _state(file.path) != before or before[0] != file.size:
        raise DataError(f"SRC: {file.path} changed while it was sent; run again")
    advance(file.size)
    return digest, changed


def _md5(path: Path) -> str:
    try:
        return file_md5(path)
    except OSError as error:
        raise DataError(f"SRC: {path} cannot be read: {error.strerror}") from error


def _state(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"SRC: {path} cannot be read: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns


def _verify(store: S3Store, files: list[_File], digests: Mapping[str, str]) -> tuple[str, ...]:
    """Names below the target that are not of `files`; raises DataError where one of them is missing or differs."""
    there = _tags(store)

    def is_there(file: _File) -> bool:
        return file.name in there and store.holds(file.name, there[file.name], file.size, digests[file.name])

    lacking = [file.name for file, sound in zip(files, _each(files, is_there), strict=True) if not sound]
    if lacking:
        raise DataError(
            f"{store.location}: {len(lacking)} of {len(files)} files are missing or differ after the upload, the first "
            f"is {lacking[0]}; something else writes or deletes there; run again"
        )
    return tuple(sorted(there.keys() - digests.keys()))


def _each(files: list[_File], action: Callable[[_File], Result]) -> list[Result]:
    """`action` of every file, several at a time; the first error ends it, and what was not begun is left."""
    with ThreadPoolExecutor(_SENDERS) as pool:
        try:
            return list(pool.map(action, files))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _ignore(size: int) -> None:
    """No bar is shown."""
