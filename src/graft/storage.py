"""Where bytes live: one small seam between graft and the places it reads and writes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from graft.errors import ConfigError


def local_path(location: str, key: str) -> Path:
    """The folder or file that `location`, the value of `key`, names.

    Raises:
        ConfigError: the location is remote; only local paths are read in this release.
    """
    if "://" in location:
        raise ConfigError(f"{key}={location}: accepted is a local path; s3:// comes with a later release")
    return Path(location).expanduser()


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
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    r"""Write UTF-8 text atomically; a byte of a file name that is not UTF-8 becomes an escape such as \udce9."""
    write_atomic(path, text.encode(errors="backslashreplace"))
