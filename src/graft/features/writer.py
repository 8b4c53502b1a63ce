"""Collects vectors as they come and appends them to a space, shard by shard."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from graft.data.digests import DigestIndex, Digests
from graft.errors import ConfigError, WeightsError
from graft.features.cache import UNDECODABLE, Space
from graft.features.engines import Vectors
from graft.stores import Tags

SHARD_ROWS = 1024
SHARD_SECONDS = 5.0  # what an interruption costs at most, beside the batches in flight


class ShardWriter:
    """Collects rows and appends them as a shard when there are enough, or when they get old."""

    def __init__(self, space: Space, index: DigestIndex | None) -> None:
        self._space, self._index = space, index
        self._rows: list[tuple[Digests, NDArray[np.uint8], Vectors]] = []
        self._notes: list[tuple[Tags, Digests]] = []
        self._flushed = time.monotonic()

    def add(self, keys: Digests, status: NDArray[np.uint8], vectors: Vectors) -> None:
        """Take vectors [n, D] of photos; any thread may give them."""
        # list.append is atomic: engines call this from their own threads.
        self._rows.append((keys, status, np.where(status[:, None] == UNDECODABLE, np.float32(0), vectors)))

    def note(self, tags: Tags, digests: Digests) -> None:
        """Take what was learned of files: their tags and content hashes, bytes [n]."""
        self._notes.append((tags, digests))

    def flush_if_due(self) -> None:
        """Append what there is, if it is enough or old."""
        old = time.monotonic() - self._flushed > SHARD_SECONDS
        if old or sum(len(keys) for keys, _, _ in self._rows[:]) >= SHARD_ROWS:
            self.flush()

    def flush(self) -> None:
        """Append what there is.

        Raises:
            ConfigError: the vectors are too large or too small for the dtype of the space.
            WeightsError: the vectors are not finite.
        """
        count = len(self._rows)
        taken, self._rows[:count] = self._rows[:count], []
        self._flushed = time.monotonic()
        if taken:
            keys, status, vectors = (np.concatenate(column) for column in zip(*taken, strict=True))
            _check_stored(vectors, self._space)
            self._space.append(keys, status, vectors)
        if self._index and self._notes:
            self._index.remember(*(np.concatenate(column) for column in zip(*self._notes, strict=True)))
            self._notes = []


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
