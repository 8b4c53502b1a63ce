"""A data set that is fetched on first use: one zip file, downloaded, checked and unpacked whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock

from graft.data.download import ProgressBar, discard, download, http_url
from graft.data.unzip import read_contents, unpack
from graft.errors import DataError
from graft.locks import held
from graft.terminal import say


def fetch_archive(url: str, target: Path, *, size: int | None, region: str | None, progress: ProgressBar) -> None:
    """Download a zip file of photos and unpack it to `target`; nothing is done where `target` is there already.

    A process that is killed leaves `.NAME.zip.part` beside the target, and the next call goes on from there. Of
    several at once one fetches and the others wait.

    Args:
        url: s3://BUCKET/KEY that anybody may read, https:// or http://.
        target: the folder that will hold train/, valid/ and test/; one folder around them in the zip is taken away.
        size: bytes of the zip file; None takes any.
        region: of the bucket; None asks the global endpoint.
        progress: makes a bar of a title and a total in bytes.

    Raises:
        ConfigError: the URL is of another kind.
        DataError: not reachable, denied, of another size, damaged, refused as unsafe, or there is no room.
    """
    source = http_url(url, region)
    part = target.with_name(f".{target.name}.zip.part")
    if target.exists() and not part.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"))
        with held(lock, busy=partial(say, f"another process fetches {target}; waiting for it")):
            if not target.exists():
                _fetch(url, source, part, target, size, progress)
            discard(part)  # also that of a process that was killed when all was done but this
    except OSError as error:
        raise DataError(
            f"data.archive={url}: {error.filename or target} cannot be written ({error.strerror}); accepted is a "
            "data.root where you may write"
        ) from error


def _fetch(url: str, source: str, part: Path, target: Path, size: int | None, progress: ProgressBar) -> None:
    fresh = target.with_name(f".{target.name}.unzipping")
    if fresh.exists():  # of a killed process
        shutil.rmtree(fresh)
    say(f"{target} is not there: fetching {source}")
    hint = (
        "the same command goes on where it stopped; by hand: get that zip file from a machine with a network and "
        f"unzip it so that {target / 'train'} is there"
    )

    def check_room(total: int, have: int) -> None:
        # Photos hardly shrink in a zip. What they really take is known, and checked, once the zip is here.
        _check_room(target, total - have + total)

    try:
        download(
            source,
            part,
            size=size,
            etag_is_md5=url.startswith("s3://"),
            hint=hint,
            check_room=check_room,
            progress=progress,
        )
        _unzip(part, fresh, target, progress)
    except DataError as error:
        raise DataError(f"data.archive={url}: {error}") from error


def _unzip(part: Path, fresh: Path, target: Path, progress: ProgressBar) -> None:
    try:
        with _discarded_if_bad(part):
            contents = read_contents(part)
        _check_room(target, contents.disk_size)
        with _discarded_if_bad(part), progress("unzipping", contents.size) as advance:
            unpack(part, contents, fresh, advance)
        # The zip file is removed soon: a power cut must not leave photos without their bytes.
        os.sync()
        os.rename(fresh, target)
    finally:
        if fresh.exists():
            shutil.rmtree(fresh)


@contextmanager
def _discarded_if_bad(part: Path) -> Iterator[None]:
    """Remove a zip file that is refused: kept, it would stop every later call at the same place."""
    try:
        yield
    except DataError:
        discard(part)
        raise


def _check_room(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise DataError(
            f"{target.parent} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} GB are needed; make room, or give "
            "data.root=PATH of a folder on another disk"
        )
