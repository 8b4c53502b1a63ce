"""One pass over the photos at the machine's limit: decode in threads, run the engine, append shards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from graft.data.folder import Digests
from graft.errors import ConfigError, WeightsError
from graft.features.cache import OK, TRUNCATED, UNDECODABLE, Space, Table
from graft.features.engines import Engine, Pixels, Receive, Vectors
from graft.images import ImageError, InputSpec, render
from graft.terminal import say
from graft.transforms import random_view

SHARD_ROWS = 1024
SHARD_SECONDS = 5.0  # what an interruption costs at most, beside the batches in flight

Progress = Callable[[int], None]  # called with the number of photos done


@dataclass(frozen=True)
class Job:
    """What one pass computes.

    Attributes:
        paths: photos.
        digests: their content hashes, bytes [N].
        spec: what the backbone expects of an image.
        view_seed: None for the plain view; else the crop and flip depend on this and the photo's bytes.
        batch_size: images per call of the engine.
        workers: decoding threads.
    """

    paths: Sequence[Path]
    digests: Digests
    spec: InputSpec
    view_seed: tuple[int, ...] | None
    batch_size: int
    workers: int


@dataclass(frozen=True)
class Extracted:
    """The table of a space with the row of every photo, and what it took to complete it."""

    table: Table
    rows: NDArray[np.int64]
    computed: int
    reused: int

    def at(self, rows: NDArray[np.int64]) -> Extracted:
        """The same table for other photos of it."""
        return replace(self, rows=rows)


def extract(job: Job, space: Space, make: Callable[[Receive], Engine], progress: Progress) -> Extracted:
    """Complete a space for the photos of a job and return where their vectors lie.

    A process that finds another one computing the same space waits for it and then reuses its work.
    Photos that cannot be decoded get a row of zeros with the status UNDECODABLE.

    Args:
        job: the photos.
        space: where vectors are kept.
        make: builds the engine; called only when something is to be computed.
        progress: told of every photo that is done, reused ones included.

    Raises:
        ConfigError: the vectors are too large or too small for the dtype of the space.
        WeightsError: the vectors are not finite.
    """
    with _alone(space.lock()):
        table = space.read()
        _, first = np.unique(job.digests, return_index=True)
        unique = np.sort(first)
        missing = unique[table.rows(job.digests[unique]) < 0]
        progress(len(job.paths) - len(missing))
        if len(missing):
            _compute(job, missing, space, make, progress)
            table = space.read()
    return Extracted(table, table.rows(job.digests), len(missing), len(unique) - len(missing))


@contextmanager
def _alone(lock: FileLock) -> Iterator[None]:
    """Hold the lock; says so when another process has it, for it may compute for an hour."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("another process computes these features; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _compute(
    job: Job, missing: NDArray[np.intp], space: Space, make: Callable[[Receive], Engine], progress: Progress
) -> None:
    writer = _ShardWriter(space)
    workers = max(job.workers, 1)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        portions = [missing[at : at + job.batch_size] for at in range(0, len(missing), job.batch_size)]
        batches = _ahead(pool, lambda portion: _decode(job, portion), portions, 2 * workers)

        def receive(tag: tuple[NDArray[np.intp], NDArray[np.uint8], Pixels], vectors: Vectors) -> None:
            portion, status, _ = tag  # the pixels ride along so that they live until the engine has read them
            writer.add(job.digests[portion], status, vectors[: len(portion)])
            progress(len(portion))

        engine = make(receive)
        for portion, status, pixels in batches:
            engine.submit(pixels, (portion, status, pixels))
            writer.flush_if_due()
        engine.finish()
    writer.flush()


class _ShardWriter:
    """Collects rows and appends them as a shard when there are enough, or when they get old."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._rows: list[tuple[Digests, NDArray[np.uint8], Vectors]] = []
        self._flushed = time.monotonic()

    def add(self, keys: Digests, status: NDArray[np.uint8], vectors: Vectors) -> None:
        # list.append is atomic: engines call this from their own threads.
        self._rows.append((keys, status, np.where(status[:, None] == UNDECODABLE, np.float32(0), vectors)))

    def flush_if_due(self) -> None:
        old = time.monotonic() - self._flushed > SHARD_SECONDS
        if self._rows and (old or sum(len(keys) for keys, _, _ in self._rows[:]) >= SHARD_ROWS):
            self.flush()

    def flush(self) -> None:
        count = len(self._rows)
        taken, self._rows[:count] = self._rows[:count], []
        self._flushed = time.monotonic()
        if taken:
            keys, status, vectors = (np.concatenate(column) for column in zip(*taken, strict=True))
            _check_stored(vectors, self._space)
            self._space.append(keys, status, vectors)


def _check_stored(vectors: Vectors, space: Space) -> None:
    """Refuse what would not survive being stored: infinite, not a number, or lost below float16's least number."""
    with np.errstate(all="ignore"):
        largest = np.abs(vectors).max(initial=0)
        lost = np.abs(vectors.astype(space.dtype).astype(np.float32) - vectors).max(initial=0)
    if lost <= largest / 256:
        return
    name = space.describe["backbone"]
    if space.dtype == "float16":
        raise ConfigError(
            f"features.precision=bf16: the largest feature of {name} is {largest:.3g}, and float16, which keeps "
            "them, holds 1e-5 to 65504; accepted is fp32"
        )
    raise WeightsError(f"model.weights: the features of {name} are not finite; accepted are weights that fit it")


def _decode(job: Job, portion: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.uint8], Pixels]:
    """One batch: always batch_size images, the unused ones black."""
    size = job.spec.image_size
    pixels = np.zeros((job.batch_size, size, size, 3), np.uint8)
    status = np.full(len(portion), OK, np.uint8)
    for slot, index in enumerate(portion):
        try:
            rendered = render(job.paths[index].read_bytes(), job.spec, _chooser(job, index))
        except ImageError:
            status[slot] = UNDECODABLE
            continue
        pixels[slot] = rendered.pixels
        status[slot] = TRUNCATED if rendered.truncated else OK
    return portion, status, pixels


def _chooser(job: Job, index: np.intp) -> Any:
    if job.view_seed is None:
        return None
    rng = np.random.default_rng([*job.view_seed, int.from_bytes(job.digests[index].ljust(16, b"\0"), "little")])
    return lambda width, height: random_view(width, height, rng)


def _ahead(pool: ThreadPoolExecutor, work: Callable[[Any], Any], items: Sequence[Any], depth: int) -> Iterator[Any]:
    """Results in order, at most `depth` of them computed ahead: memory stays flat."""
    pending: list[Future[Any]] = []
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) >= depth:
            yield pending.pop(0).result()
    for future in pending:
        yield future.result()
