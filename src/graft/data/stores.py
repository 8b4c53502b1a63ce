"""From a location, as a person types it, to the store that reads it."""

from __future__ import annotations

from pathlib import Path

from graft.errors import ConfigError, DataError
from graft.s3 import S3Store
from graft.storage import is_remote
from graft.stores import LocalStore, Store


def open_store(location: str, key: str, *, cache: Path | None = None, max_bytes: float = 0) -> Store:
    """The store at a local path or s3://BUCKET/PREFIX.

    Args:
        location: the place.
        key: what it is the value of, for messages.
        cache: where copies of remote files are kept; None keeps none.
        max_bytes: size limit of that.

    Raises:
        ConfigError: a URL of another kind, or without a bucket.
    """
    if not is_remote(location):
        return LocalStore(Path(location).expanduser())
    if not location.startswith("s3://"):
        raise ConfigError(f"{key}={location}: accepted is a local path or s3://BUCKET/PREFIX")
    try:
        return S3Store(location, cache=cache if max_bytes > 0 else None, max_bytes=max_bytes)
    except DataError as error:  # it is no place; nothing was asked yet
        raise ConfigError(f"{key}={error}") from error
