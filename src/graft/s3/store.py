"""A tree of objects in S3 as a store: listed in parallel, read version by version, each checked as it arrives."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from graft.errors import DataError
from graft.s3.cache import ObjectCache
from graft.s3.connection import PART_BYTES, READERS, Connection
from graft.s3.errors import explained
from graft.s3.listing import entries_below, folders_below
from graft.s3.place import Place, parse_place
from graft.s3.versions import Version, read_tag
from graft.stores import Listing

_TRIES_WHERE_DAMAGED = 5

# Makes a bar of a title and a total in bytes; the bar's function takes the bytes done, fewer than 0 where some are
# done again.
ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


class S3Store:
    """The objects below s3://BUCKET/PREFIX. Safe for threads, for forks and to pickle.

    A tag of its listings holds ETag and size (`graft.s3.versions`), so a read gets that version or fails.
    """

    readers = READERS

    def __init__(self, location: str, *, cache: Path | None = None, max_bytes: float = 0) -> None:
        """Open nothing yet.

        Args:
            location: s3://BUCKET or s3://BUCKET/PREFIX.
            cache: a folder where objects read by tag are kept; several processes may share it.
            max_bytes: what the cache may take on disk; 0 keeps nothing.

        Raises:
            DataError: `location` is no place in S3.
        """
        self.place = parse_place(location)
        self.location = self.place.url()
        self._connection = Connection(self.location, self.place.bucket)
        self._cache = ObjectCache(cache, max_bytes) if cache is not None and max_bytes > 0 else None
        self._etags_are_md5 = True

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders in a folder, sorted; none where it does not exist.

        Raises:
            DataError: the bucket cannot be listed.
        """
        return folders_below(self._connection.client, self._below(folder))

    def list(self, folder: str = "") -> Listing:
        """All objects below a folder; the markers that consoles make for empty folders are left out.

        About 160 bytes per object; needs a request per 1,000 objects.

        Raises:
            DataError: the bucket cannot be listed, or nothing is below the folder.
        """
        listing = self.present(folder)
        if not listing.names:
            raise DataError(f"{self.place.url(folder)}: nothing is below it; check the prefix (`aws s3 ls` shows them)")
        return listing

    def present(self, folder: str = "") -> Listing:
        """As `list`, but nothing is no error."""
        return entries_below(self._connection.client, self._below(folder))

    def read(self, name: str, tag: bytes = b"") -> bytes:
        """The content of an object, with one request up to 8 MiB, and with none where it is kept.

        Args:
            name: relative to the location.
            tag: the version, from a listing; empty takes what is there, unchecked and not kept.

        Raises:
            DataError: it cannot be read, arrives damaged, or is no longer that version.
        """
        version, key = read_tag(tag), self.place.prefix + name
        if version is None:
            return self._download(key, None)
        if version.size == 0:
            return b""  # S3 answers the request for a range of nothing with an error
        if self._cache and (kept := self._cache.get(self.place.bucket, key, tag, version.size)) is not None:
            return kept
        data = self._read_version(name, version)
        if self._cache:
            self._cache.put(self.place.bucket, key, tag, data)
        return data

    def head(self, name: str) -> dict[str, Any]:
        """What S3 says of an object, as boto3 gives it."""
        with explained(self.place.url(name)):
            answer: dict[str, Any] = self._connection.client.head_object(
                Bucket=self.place.bucket, Key=self.place.prefix + name
            )
        return answer

    def holds(self, name: str, tag: bytes, size: int, md5: str) -> bool:
        """Whether a listed object has this content, by its ETag or, where that is no MD5, by what `put` noted."""
        listed = read_tag(tag)
        if listed is not None and listed.size != size:
            return False
        if listed is not None and listed.md5 == md5:
            return True
        return bool(self.head(name).get("Metadata", {}).get("md5") == md5)

    def put(self, name: str, content: bytes | Path, md5: str) -> None:
        """Write an object, which appears whole or not at all; `md5` of the content, hex, is noted with it.

        Raises:
            DataError: it cannot be written.
        """
        source = io.BytesIO(content) if isinstance(content, bytes) else str(content)
        try:
            with explained(self.place.url(name)):
                self._connection.transfers.upload(
                    source, self.place.bucket, self.place.prefix + name, extra_args={"Metadata": {"md5": md5}}
                ).result()
        except DataError as error:
            if (len(content) if isinstance(content, bytes) else content.stat().st_size) < PART_BYTES:
                raise
            # Boto3 takes them back, and does not say so where it could not.
            raise DataError(
                f"{error}; parts of it may be left, whose storage is billed: `aws s3api list-multipart-uploads "
                f"--bucket {self.place.bucket}` shows them"
            ) from error

    def delete(self, name: str) -> None:
        """Remove an object; none there is no error."""
        with explained(self.place.url(name)):
            self._connection.client.delete_object(Bucket=self.place.bucket, Key=self.place.prefix + name)

    def download(self, name: str, version: Version, target: Path, advance: Callable[[int], None] | None = None) -> None:
        """Write a version of an object to a file, in parallel parts; not atomic, not checked."""
        with explained(self.place.url(name)):
            key, subscriber = self.place.prefix + name, _subscriber_class()(version, advance)
            self._connection.transfers.download(self.place.bucket, key, str(target), subscribers=[subscriber]).result()

    def _below(self, folder: str) -> Place:
        folder = folder.strip("/")
        return Place(self.place.bucket, f"{self.place.prefix}{folder}/" if folder else self.place.prefix)

    def _read_version(self, name: str, version: Version) -> bytes:
        for _ in range(_TRIES_WHERE_DAMAGED):
            data = self._download(self.place.prefix + name, version)
            if self._is_sound(name, version, data):
                return data
        raise DataError(
            f"{self.place.url(name)} arrived damaged {_TRIES_WHERE_DAMAGED} times (its size or MD5 is not what S3 "
            "says); check the network and any proxy in between, run again"
        )

    def _is_sound(self, name: str, version: Version, data: bytes) -> bool:
        """Whether the bytes are the version; raises DataError where S3 has another one by now."""
        same_size = len(data) == version.size
        if same_size and (not self._etags_are_md5 or version.md5 in (None, _md5(data))):
            return True
        head = self.head(name)
        if head["ETag"].strip('"') != version.etag:
            raise DataError(f"{self.place.url(name)} changed while it was read (it is not what was listed); run again")
        if same_size and _is_opaque(head):
            # One more request per object would be the price of a check that can never succeed.
            self._etags_are_md5 = False
            return True
        return False

    def _download(self, key: str, version: Version | None) -> bytes:
        buffer = io.BytesIO()
        with explained(Place(self.place.bucket, "").url(key)):
            subscribers = [_subscriber_class()(version, None)] if version else []
            self._connection.transfers.download(self.place.bucket, key, buffer, subscribers=subscribers).result()
        return buffer.getvalue()


def fetch_file(location: str, directory: Path, progress: ProgressBar | None = None) -> Path:
    """A local copy of one object, `ETAG-NAME` in `directory`; the one from before where it is the same version.

    Args:
        location: s3://BUCKET/KEY.
        directory: made where it is not there.
        progress: makes a bar of a title and a total in bytes.

    Raises:
        DataError: it is not there, cannot be read, or arrives damaged.
    """
    parent, _, name = location.rpartition("/")
    if parent in ("s3:/", "s3:"):
        raise DataError(f"{location} names no object; accepted is s3://BUCKET/KEY")
    store = S3Store(parent)
    head = store.head(name)
    version = Version(head["ETag"].strip('"'), head["ContentLength"])
    path = directory / f"{re.sub(r'[^A-Za-z0-9-]', '_', version.etag)}-{name}"
    if path.is_file() and path.stat().st_size == version.size:
        return path
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".fetch-") as folder:
        partial = Path(folder) / "object"
        with progress(f"fetching {name}", version.size) if progress else nullcontext() as advance:
            store.download(name, version, partial, advance)
        _check_file(location, partial, None if _is_opaque(head) else version.md5, version.size)
        os.replace(partial, path)
    return path


def _check_file(location: str, path: Path, md5: str | None, size: int) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest() if md5 else None
    if path.stat().st_size != size or found != md5:
        raise DataError(f"{location} arrived damaged (its size or MD5 is not what S3 says); run again")


def _is_opaque(head: dict[str, Any]) -> bool:
    """Whether encryption makes an ETag that looks like an MD5 and is none."""
    return head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@cache
def _subscriber_class() -> Any:
    """What tells the transfer manager which version is meant, and a person how far it is."""
    from boto3.s3.transfer import BaseSubscriber

    class Subscriber(BaseSubscriber):  # type: ignore[misc]
        def __init__(self, version: Version, advance: Callable[[int], None] | None) -> None:
            self.version = version
            self.advance = advance

        def on_queued(self, future: Any, **_: Any) -> None:
            future.meta.provide_transfer_size(self.version.size)
            future.meta.provide_object_etag(self.version.etag)

        def on_progress(self, bytes_transferred: int, **_: Any) -> None:
            if self.advance:
                self.advance(bytes_transferred)

    return Subscriber
