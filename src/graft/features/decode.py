"""From the places of photos to batches of pixels: read ahead, hash, decode in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from graft.data.digests import DIGEST_BYTES, Digests, digest
from graft.data.folder import PhotoList
from graft.features.cache import OK, TRUNCATED, UNDECODABLE, Table
from graft.features.engines import Pixels
from graft.images import ImageError, View, render
from graft.inputs import InputSpec
from graft.transforms import random_view

KNOWN = 255  # status of a photo whose vector is there already

Index = NDArray[np.intp]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batch:
    """A portion of photos, decoded.

    Attributes:
        portion: their places in the list, [n].
        digests: content hashes of what was read, bytes [n].
        status: OK, TRUNCATED, UNDECODABLE or KNOWN, uint8 [n].
        pixels: uint8 [B, S, S, 3], n <= B; black where there is nothing to compute, None where that is everywhere.
    """

    portion: Index
    digests: Digests
    status: NDArray[np.uint8]
    pixels: Pixels | None


class Reading:
    """The bytes of photos: from a disk when they are asked for, from afar some portions ahead."""

    def __init__(self, photos: PhotoList, portions: Sequence[Index]) -> None:
        self.portions = portions
        self._photos = photos
        self._pool = ThreadPoolExecutor(photos.readers, thread_name_prefix="read") if photos.readers > 1 else None
        self._ahead = -(-2 * photos.readers // len(portions[0]))
        self._started, self._lock = 0, threading.Lock()
        self._running: dict[int, list[Future[bytes]]] = {}

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def contents(self, number: int) -> list[bytes]:
        """The photos of a portion. Portions are asked for about in order, each once.

        Raises:
            DataError: one cannot be read.
        """
        if self._pool is None:
            return [self._photos.read(index) for index in self.portions[number].tolist()]
        with self._lock:
            for started in range(self._started, min(number + 1 + self._ahead, len(self.portions))):
                indices = self.portions[started].tolist()
                self._running[started] = [self._pool.submit(self._photos.read, index) for index in indices]
                self._started = started + 1
            futures = self._running.pop(number)
        return [future.result() for future in futures]


class Decoder:
    """From the number of a portion to a batch; photos whose vectors are there, or underway, are not decoded.

    Args:
        reading: the portions.
        table: the vectors that are there.
        spec: what the backbone expects of an image.
        view_seed: None for the plain view; else the crop and flip depend on this and the photo's bytes.
        batch_size: B; a batch always has so many images.
    """

    def __init__(
        self, reading: Reading, table: Table, spec: InputSpec, view_seed: tuple[int, ...] | None, batch_size: int
    ) -> None:
        self._reading, self._table, self._spec, self._view_seed = reading, table, spec, view_seed
        self._shape = (batch_size, spec.image_size, spec.image_size, 3)
        self._underway: set[bytes] = set()
        self._lock = threading.Lock()

    def decode(self, number: int) -> Batch:
        """Read, hash and decode a portion."""
        contents = self._reading.contents(number)
        digests = np.array([digest(content) for content in contents], f"S{DIGEST_BYTES}")
        status, new = np.full(len(contents), KNOWN, np.uint8), self._new(digests)
        if not new:
            return Batch(self._reading.portions[number], digests, status, None)
        pixels = np.zeros(self._shape, np.uint8)
        for slot in new:
            try:
                rendered = render(contents[slot], self._spec, self._chooser(bytes(digests[slot])))
            except ImageError:
                status[slot] = UNDECODABLE
                continue
            pixels[slot] = rendered.pixels
            status[slot] = TRUNCATED if rendered.truncated else OK
        return Batch(self._reading.portions[number], digests, status, pixels)

    def _new(self, digests: Digests) -> list[int]:
        """Which photos of a portion nobody has computed or begun."""
        absent = np.flatnonzero(self._table.rows(digests) < 0).tolist()
        new = []
        with self._lock:
            for slot in absent:
                key = bytes(digests[slot])
                if key not in self._underway:
                    self._underway.add(key)
                    new.append(slot)
        return new

    def _chooser(self, key: bytes) -> Callable[[int, int], View] | None:
        if self._view_seed is None:
            return None
        rng = np.random.default_rng([*self._view_seed, int.from_bytes(key.ljust(DIGEST_BYTES, b"\0"), "little")])
        return lambda width, height: random_view(width, height, rng)


def ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], depth: int
) -> Iterator[Result]:
    """Results in order, at most `depth` of them computed ahead: memory stays flat."""
    pending: list[Future[Result]] = []
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) >= depth:
            yield pending.pop(0).result()
    for future in pending:
        yield future.result()
