"""A run directory in S3: worked on in a local copy that is sent back every half minute, and whatever ends the run.

What of both is newer where both are there already:

- `run.json` says when its state last changed. The copy with the later one counts, and where they are equal the local
  one: a process that was killed leaves files that it had not sent yet.
- Where nothing is in S3 any more although a copy was sent before, somebody deleted it: the local copy is put aside.
- The copy that does not count is replaced by the other. In S3 nothing is deleted for that.

Only one machine may work on a run directory at a time; on one machine a lock sees to it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from graft.artifacts import in_use
from graft.errors import DataError, RunError
from graft.locks import held
from graft.s3 import S3Store
from graft.s3.versions import read_tag
from graft.storage import write_atomic
from graft.terminal import say

_STATE = "run.json"
_SETTLED_S = 2.0
_TRANSFERS = 8


@contextmanager
def mirrored(location: str, staging: Path, *, interval_s: float = 30.0) -> Iterator[Path]:
    """A local folder that holds what is at `location`, and whose changes are sent there.

    Args:
        location: s3://BUCKET/PREFIX of a run directory, new or not.
        staging: where local copies are kept; this one's folder is named after `location`.
        interval_s: seconds between two looks at what changed.

    Raises:
        RunError: at the start, S3 cannot be read, or what is there is no run directory, or another process of this
            machine works on it; at the end, something could not be sent: it says where the local copy is.
    """
    folder = staging / _folder_name(location)
    try:
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{staging}, for a copy of run_dir={location}, cannot be made: {error.strerror}") from error
    with held(FileLock(folder.with_name(f".{folder.name}.lock")), busy=in_use(location)):
        mirror = _Mirror(location, folder)
        try:
            mirror.fetch()
        except (DataError, OSError) as error:
            raise RunError(f"run_dir={location} cannot be opened: {error}") from error
        with _sending(mirror, interval_s):
            yield folder


@contextmanager
def _sending(mirror: _Mirror, interval_s: float) -> Iterator[None]:
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(interval_s):
            try:
                mirror.send(settled_s=_SETTLED_S)
            except DataError:
                continue  # sent at the next turn or at the end, which says what is wrong if it still is

    thread = threading.Thread(target=work, name="mirror", daemon=True)
    thread.start()
    ended_by: BaseException | None = None
    try:
        yield
    except BaseException as error:
        ended_by = error
        raise
    finally:
        stop.set()
        thread.join()
        _send_last(mirror, ended_by)


def _send_last(mirror: _Mirror, ended_by: BaseException | None) -> None:
    try:
        mirror.send(settled_s=0)
    except DataError as error:
        before = f" (the run had ended with {type(ended_by).__name__}: {ended_by})" if ended_by else ""
        raise RunError(
            f"run_dir={mirror.location} could not be written ({error}){before}; the local copy is {mirror.folder}, "
            "and the same command sends it first"
        ) from (ended_by or error)


class _Mirror:
    """The files of a local folder, and which state of each is in S3 as far as this machine knows.

    That knowledge is kept in a file beside the folder, name -> MD5.
    """

    def __init__(self, location: str, folder: Path) -> None:
        self.location = location
        self.folder = folder
        self._store = S3Store(location)
        self._record = folder.with_name(f".{folder.name}.sent.json")
        self._sent: dict[str, str] = {}
        self._seen: dict[str, tuple[int, int]] = {}  # size and time of change when last sent

    def fetch(self) -> None:
        """Make the folder the newer of both copies."""
        listing = self._store.present()
        there = dict(zip(listing.names, listing.tags.tolist(), strict=True))
        before = _read_object(self._record)
        # What another machine wrote since is not what was sent from here.
        self._sent = {name: digest for name, digest in before.items() if _is_still(digest, there.get(name))}
        if there and _STATE not in there and not self._local_state():
            first = next(iter(there))
            raise RunError(f"run_dir={self.location} is no run directory: it holds {first}; give a new or an empty one")
        if before and not there:
            self._put_aside()
        elif there and not self._is_local_newer(there):
            self._clear()
            self._fetch_all(there)
        self.folder.mkdir(parents=True, exist_ok=True)

    def send(self, *, settled_s: float) -> None:
        """Send what changed, and remove from S3 what this mirror had sent and is gone here.

        Args:
            settled_s: a file that changed less than so long ago is left for the next turn.
        """
        files = {path.relative_to(self.folder).as_posix(): path for path in sorted(self.folder.rglob("*"))}
        names = [name for name, path in files.items() if _is_sent(name) and path.is_file()]
        try:
            # The state goes first, so that the rest is seen to be of a run, but "finished" goes last.
            finished = self._local_state().get("state") == "finished"
            if not finished:
                self._send_one(_STATE, settled_s)
                if _STATE not in self._sent:
                    return
            with ThreadPoolExecutor(_TRANSFERS) as pool:
                list(pool.map(lambda name: self._send_one(name, settled_s), [n for n in names if n != _STATE]))
            if finished:
                self._send_one(_STATE, settled_s)
            # Not where the whole folder was deleted from under us.
            for name in self._sent.keys() - set(names) if _STATE in names else ():
                self._store.delete(name)
                del self._sent[name]
        finally:
            self._keep_record()

    def _is_local_newer(self, there: dict[str, bytes]) -> bool:
        here = self._local_state()
        if not here or _STATE not in there:
            return bool(here)
        # ISO 8601 in UTC, to the second: their order is that of the texts.
        return here.get("at", "") >= _as_texts(self._store.read(_STATE)).get("at", "")

    def _local_state(self) -> dict[str, str]:
        return _read_object(self.folder / _STATE)

    def _fetch_all(self, there: dict[str, bytes]) -> None:
        # The state comes last: without it, what a killed process had fetched so far does not count.
        state = there.pop(_STATE)
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            list(pool.map(lambda item: self._fetch_one(*item), there.items()))
        self._fetch_one(_STATE, state)
        self._keep_record()

    def _fetch_one(self, name: str, tag: bytes) -> None:
        data = self._store.read(name, tag)
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise RunError(f"run_dir={self.location}: the name {name} leads out of the folder; delete that object")
        write_atomic(path, data)
        self._note(name, _md5(data), _stamp(path))

    def _send_one(self, name: str, settled_s: float) -> None:
        path = self.folder / name
        try:
            before = _stamp(path)
            if self._seen.get(name) == before or time.time() - before[1] / 1e9 < settled_s:
                return
            # Whole, then sent: files of events grow while they are read.
            data = path.read_bytes()
            if settled_s and _stamp(path) != before:
                return
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        digest = _md5(data)
        if self._sent.get(name) != digest:
            self._store.put(name, data, digest)
        self._note(name, digest, before)

    def _note(self, name: str, digest: str, stamp: tuple[int, int]) -> None:
        self._sent[name] = digest
        self._seen[name] = stamp

    def _keep_record(self) -> None:
        try:
            write_atomic(self._record, json.dumps(self._sent).encode())
        except OSError as error:
            raise DataError(f"{self._record} cannot be written: {error.strerror}") from error

    def _put_aside(self) -> None:
        """Keep the copy of what is no longer in S3: another endpoint may be meant, or a rule has emptied the bucket."""
        kept = self.folder.with_name(f"{self.folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        if self.folder.exists():
            self.folder.rename(kept)
            say(f"run_dir={self.location} is empty; what this machine had of it is kept in {kept}")
        self._clear()

    def _clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._sent, self._seen = {}, {}
        self._record.unlink(missing_ok=True)


def _is_still(digest: str, tag: bytes | None) -> bool:
    """Whether an object has the MD5 that was sent, as far as its tag tells."""
    version = read_tag(tag) if tag else None
    return tag is not None and (version is None or version.md5 in (None, digest))


def _is_sent(name: str) -> bool:
    """Locks and files that are being written start with a dot."""
    return not any(part.startswith(".") for part in name.split("/"))


def _folder_name(location: str) -> str:
    name = location.rstrip("/").rpartition("/")[2]
    return f"{name}-{hashlib.blake2b(location.rstrip('/').encode(), digest_size=6).hexdigest()}"


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _read_object(path: Path) -> dict[str, str]:
    try:
        return _as_texts(path.read_bytes())
    except OSError:
        return {}


def _as_texts(data: bytes) -> dict[str, str]:
    """A JSON object with its values as text; empty where it is none."""
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in content.items()} if isinstance(content, dict) else {}


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
