"""One pass over the photos at the machine's limit: read, hash, decode in threads, run the engine, append shards.

A photo is read once. Where its content hash is known already, because the file was seen in an earlier run,
and its vector is there, it is not read at all.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from graft.data.digests import UNKNOWN, DigestIndex, Digests
from graft.data.folder import PhotoList
from graft.errors import DataError
from graft.features.cache import Space, Table
from graft.features.decode import KNOWN, Batch, Decoder, Index, Reading, ahead
from graft.features.engines import Engine, Receive, Vectors
from graft.features.exchange import fetch_from_others, merge_digests
from graft.features.writer import ShardWriter
from graft.inputs import InputSpec
from graft.locks import held
from graft.processes import ALONE, Team
from graft.shards import distinct
from graft.terminal import say

Progress = Callable[[int], None]  # called with the number of photos done


@dataclass(frozen=True)
class Job:
    """What one pass computes.

    Attributes:
        photos: what is looked at.
        digests: their content hashes, bytes [N]; UNKNOWN where the photo has to be read for it.
        spec: what the backbone expects of an image.
        view_seed: None for the plain view; else the crop and flip depend on this and the photo's bytes.
        batch_size: images per call of the engine.
        workers: decoding threads.
        index: keeps content hashes; None keeps none.
        team: the processes that share the work.
    """

    photos: PhotoList
    digests: Digests
    spec: InputSpec
    view_seed: tuple[int, ...] | None
    batch_size: int
    workers: int
    index: DigestIndex | None = None
    team: Team = ALONE


@dataclass(frozen=True)
class Extracted:
    """The table of a space, the row and the content hash of every photo, and what it took to complete the table."""

    table: Table
    rows: NDArray[np.int64]
    digests: Digests
    computed: int
    reused: int

    def at(self, rows: NDArray[np.int64], digests: Digests) -> Extracted:
        """The same table for other photos of it."""
        return replace(self, rows=rows, digests=digests)


def extract(job: Job, space: Space, make: Callable[[Receive], Engine], progress: Progress) -> Extracted:
    """Complete a space for the photos of a job and return where their vectors lie.

    A process that finds another one computing the same space waits for it and then reuses its work.
    Photos that cannot be decoded get a row of zeros with the status UNDECODABLE. The processes of a team
    share the work: each reads and computes its part of what is missing.

    Args:
        job: the photos.
        space: where vectors are kept.
        make: builds the engine; called only when something is to be computed.
        progress: told of every photo that is done, reused ones included.

    Raises:
        ConfigError: the vectors are too large or too small for the dtype of the space.
        DataError: a photo cannot be read or changes meanwhile, or the processes of a team find different photos.
        WeightsError: the vectors are not finite.
    """
    team, photos = job.team, job.photos
    _check_same_photos(photos, team)
    with _held(space, team) as tends:
        table = _ready(space, team, tends)
        digests = team.agree_on(job.digests.copy())
        todo = np.flatnonzero(team.agree_on(_to_do(digests, table)))
        progress(len(photos) - len(todo))
        mine = todo[team.rank :: team.size]
        with team.failing_together():
            if len(mine):
                _compute(replace(job, digests=digests), mine, table, space, make, progress)
        digests = merge_digests(digests, todo, team)
        keys = digests[distinct(digests)]
        computed = int(np.count_nonzero(table.rows(keys) < 0))
        if len(todo):
            table = _ready(space, team, tends)
        if team.machines > 1:
            fetch_from_others(digests, space, team, tends=tends)
            table = _ready(space, team, tends)
    return Extracted(table, _rows(table, digests, photos), digests, computed, len(keys) - computed)


def _check_same_photos(photos: PhotoList, team: Team) -> None:
    """Refuse a team whose processes list different photos: each has looked by itself, perhaps on its own disk."""
    found = photos.names_hash() if team.size > 1 else ""
    agreed = team.agree(found)
    with team.failing_together():
        if agreed != found:
            raise DataError(
                f"{photos.splits[0].store.location}: process {team.rank} finds other photos than process 0; "
                "accepted is the same data on every machine"
            )


def _to_do(digests: Digests, table: Table) -> NDArray[np.bool_]:
    """Which photos must be read, bool [N]: those of unknown content, and one of each content without a vector."""
    first = distinct(digests)
    todo: NDArray[np.bool_] = digests == UNKNOWN
    todo[first] |= table.rows(digests[first]) < 0
    return todo


def _rows(table: Table, digests: Digests, photos: PhotoList) -> NDArray[np.int64]:
    """Row of every photo: a copy of a photo that was read anew, and is now another one, has none."""
    rows = table.rows(digests)
    if (rows < 0).any():
        path = photos.path(int(np.argmax(rows < 0)))
        raise DataError(f"{path} or a copy of it was changed while photos were read; the same command reads it again")
    return rows


def _ready(space: Space, team: Team, tends: bool) -> Table:
    """The table, when all processes have written what they have."""
    team.wait()
    if tends:
        space.tidy()
    team.wait()
    return space.table()


@contextmanager
def _held(space: Space, team: Team) -> Iterator[bool]:
    """Hold a space for the whole team; yields whether this process tends it, as one of each machine does.

    Machines may have one cache directory or each its own: a note of the leader's tells them apart.
    """
    note = space.root / f"{space.key}.{team.agree(uuid.uuid4().hex)}.team"
    # It may compute for an hour.
    busy = partial(say, "another process computes these features; waiting for it")
    lock = partial(held, space.lock(), busy=busy)
    with ExitStack() as stack:
        if team.leads:
            stack.enter_context(lock())
            for left in space.root.glob(f"{space.key}.*.team"):  # by a killed process
                left.unlink()
            note.touch()
            stack.callback(note.unlink)
        team.wait()
        tends = team.leads or (team.leads_machine and not note.exists())
        if tends and not team.leads:
            stack.enter_context(lock())
        team.wait()
        yield tends
        team.wait()  # until all have opened the table: the next to hold the lock joins shards


def _compute(
    job: Job, todo: Index, table: Table, space: Space, make: Callable[[Receive], Engine], progress: Progress
) -> None:
    """Complete the vectors of the photos `todo`, and their digests in the job."""
    writer = ShardWriter(space, job.index)
    workers = max(job.workers, 1)
    portions = [todo[at : at + job.batch_size] for at in range(0, len(todo), job.batch_size)]

    def receive(batch: Batch, vectors: Vectors) -> None:
        new = batch.status != KNOWN
        writer.add(batch.digests[new], batch.status[new], vectors[: len(new)][new])
        progress(len(new))

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool, Reading(job.photos, portions) as reading:
        decoder = Decoder(reading, table, job.spec, job.view_seed, job.batch_size)
        engine: Engine | None = None
        for batch in ahead(pool, decoder.decode, range(len(portions)), 2 * workers):
            unknown = job.digests[batch.portion] == UNKNOWN
            writer.note(job.photos.tags[batch.portion][unknown], batch.digests[unknown])
            job.digests[batch.portion] = batch.digests
            if batch.pixels is None:
                progress(len(batch.status))
            else:
                engine = engine or make(receive)
                engine.submit(batch.pixels, batch)
            writer.flush_if_due()
        if engine:
            engine.finish()
    writer.flush()
