"""The source archive of a job: graft's own code and what it needs, the same bytes for the same code."""

from __future__ import annotations

import gzip
import io
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from graft.errors import ConfigError
from graft.launcher.job import ENTRY_SCRIPT, JOB_FILE, Job, write_job

CHECKOUT = Path(__file__).resolve().parents[3]

# What a job runs, below the checkout. A list of what is sent: nothing that lies about beside it, such as credentials,
# can travel along.
_SCRIPTS = ("train.py", "tune.py", ENTRY_SCRIPT, "constraints.txt")
_FOLDERS = ("src/graft", "serve", "conf")
_SUFFIXES = {".py", ".yaml", ".html", ".css", ".js", ".json", ".typed"}


def pack_source(job: Job, checkout: Path = CHECKOUT) -> bytes:
    """A tar.gz with the code, `requirements.txt` and `graft_job.yaml`: sorted, without times and owners.

    Raises:
        ConfigError: graft does not run from a checkout, so its code is not at hand.
    """
    files = dict(_code(checkout))
    files["requirements.txt"] = requirements(checkout).encode()
    files[JOB_FILE] = write_job(job).encode()
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(files[name]), 0o644
            archive.addfile(entry, io.BytesIO(files[name]))
    return gzip.compress(raw.getvalue(), mtime=0)


def requirements(checkout: Path = CHECKOUT) -> str:
    """What the toolkit installs before the job: graft's dependencies, pinned by the constraints beside it."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return "\n".join(["-c constraints.txt", *project["dependencies"], ""])


def _code(checkout: Path) -> Iterator[tuple[str, bytes]]:
    absent = [name for name in (*_SCRIPTS, *_FOLDERS, "pyproject.toml") if not (checkout / name).exists()]
    if absent:
        raise ConfigError(
            f"launcher=sagemaker sends graft's code from its checkout, and {checkout / absent[0]} is not there; "
            "accepted is a checkout with `make environment`, or `pip install -e`"
        )
    for name in _SCRIPTS:
        yield name, (checkout / name).read_bytes()
    for folder in _FOLDERS:
        for path in (checkout / folder).rglob("*"):
            name = path.relative_to(checkout).as_posix()
            if path.suffix in _SUFFIXES and path.is_file() and not _is_hidden(name):
                yield name, path.read_bytes()


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__pycache__")) for part in name.split("/"))
