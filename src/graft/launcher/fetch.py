"""A job's run directory -> the local one, so that a cloud run lies where a local run's would."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from graft.errors import CloudError, DataError
from graft.s3 import S3Store
from graft.storage import write_atomic

_READERS = 8
# The state comes last: without it, what was fetched so far does not count as a run.
_LAST = "run.json"
# Of the job's own: the local one says where the photos are in S3, and which launcher ran it.
_KEPT = ("config.yaml",)


def fetch_run(location: str, run_dir: Path) -> int:
    """Copy what is below an s3:// place into `run_dir`; returns how many files that were.

    A file that is there already is replaced, but for config.yaml.

    Raises:
        CloudError: the place cannot be read, or a name there leads out of the folder.
    """
    try:
        store = S3Store(location)
        listing = store.present()
        found = dict(zip(listing.names, listing.tags.tolist(), strict=True))
        names = [name for name in found if _is_wanted(name, run_dir)]
        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(lambda name: _write(run_dir, name, store.read(name, found[name])), names))
        if _LAST in found:
            _write(run_dir, _LAST, store.read(_LAST, found[_LAST]))
    except DataError as error:
        raise CloudError(f"the run cannot be fetched to {run_dir}: {error}") from error
    return len(names) + (_LAST in found)


def fetch_output(location: str, run_dir: Path) -> int:
    """Unpack the run directory in an output.tar.gz, which is what SageMaker makes of /opt/ml/output/data.

    Args:
        location: s3:// place of the archive.
        run_dir: local; what is below run/ in the archive goes there.

    Returns:
        How many files that were.

    Raises:
        CloudError: the archive cannot be read, or a name in it leads out of the folder.
    """
    folder, _, name = location.rpartition("/")
    count = 0
    try:
        data = S3Store(folder).read(name)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                # Below run/, or below data/run/: releases of the toolkit differ.
                before, _, inside = member.name.removeprefix("./").removeprefix("data/").partition("run/")
                content = archive.extractfile(member) if member.isfile() else None
                if content and not before and (inside == _LAST or _is_wanted(inside, run_dir)):
                    _write(run_dir, inside, content.read())
                    count += 1
    except (DataError, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CloudError(f"{location} cannot be fetched to {run_dir}: {error}") from error
    return count


def _is_wanted(name: str, run_dir: Path) -> bool:
    hidden = any(part.startswith(".") and part != ".." for part in name.split("/"))
    return not hidden and name != _LAST and not (name in _KEPT and (run_dir / name).exists())


def _write(run_dir: Path, name: str, data: bytes) -> None:
    path = run_dir / name
    if not path.resolve().is_relative_to(run_dir.resolve()):
        raise CloudError(f"the name {name} leads out of {run_dir}: this is no run directory of graft's")
    write_atomic(path, data)
