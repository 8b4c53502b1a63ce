"""Where bytes are kept: local paths, and writing so that a file is there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from graft.errors import ConfigError, DiskError


def is_remote(location: str) -> bool:
    """Whether a location is a URL, not a path."""
    return "://" in location


def s3_uri(bucket: str, prefix: str, *parts: str) -> str:
    """s3://BUCKET/PREFIX/PART/PART; a prefix may be empty, or stand between slashes."""
    return "/".join([f"s3://{bucket}", *filter(None, (prefix.strip("/"), *parts))])


def local_path(location: str, key: str) -> Path:
    """The folder or file that `location`, the value of `key`, names.

    Raises:
        ConfigError: the location is remote, and `key` takes local paths only.
    """
    if is_remote(location):
        raise ConfigError(f"{key}={location}: accepted is a local path")
    return Path(location).expanduser()


def file_md5(path: Path) -> str:
    """MD5 of a file, hex, as S3 compares it. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, the old content or the whole new one is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that nobody else may read
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk names none, and the temporary's says nothing to anybody
        raise


def write_text(path: Path, text: str) -> None:
    r"""Write UTF-8 text atomically; a byte of a file name that is not UTF-8 becomes an escape such as \udce9."""
    write_atomic(path, text.encode(errors="backslashreplace"))


_FULL = "make room, and the same command goes on from here"
_DENIED = "accepted is a folder where you may write"
_NO_FOLDER = "accepted is a folder, or a path where one can be made"
# Of all errors of the operating system, those that a person can mend; others are faults of the program.
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "raise the limit (`ulimit -f`), or give a place that takes files of this size",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: _DENIED,
    errno.EEXIST: _NO_FOLDER,
    errno.ENOTDIR: _NO_FOLDER,
    errno.ENAMETOOLONG: "accepted is a shorter path",
    errno.EMFILE: "too many files are open at once: raise the limit (`ulimit -n`)",
    errno.EIO: "the disk fails: look after it, and the same command goes on from here",
}


@contextmanager
def disk_errors(places: Mapping[str, Path]) -> Iterator[None]:
    """What a disk refuses becomes one sentence that names the key whose place it is.

    Args:
        places: by key, the folders that are written.

    Raises:
        DiskError: in place of an OSError that a person can mend.
    """
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0)
        if advice is None:
            raise
        raise DiskError(f"{_where(error.filename, places)} cannot be used ({error.strerror}); {advice}") from error


def _where(filename: str | None, places: Mapping[str, Path]) -> str:
    """A file, behind the key of the folder that it lies in."""
    if filename is None:
        return f"one of the folders {', '.join(f'{key}={place}' for key, place in places.items())}"
    path = Path(filename)
    for key, place in places.items():
        if path == place or place in path.parents:
            return f"{key}={place}" if path == place else f"{key}={place}: {path}"
    return str(path)
