"""Batches in an order that depends on the seed and the epoch alone, and that a resumed run continues."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from graft.errors import GraftError

Batch = tuple[torch.Tensor, torch.Tensor]
Place = tuple[int, int]  # (epoch, index of the photo in its split)


class Source(Protocol):
    """What batches are read from: images or cached features."""

    def __len__(self) -> int: ...

    def __getitems__(self, places: list[Place]) -> Batch:
        """Inputs [B, ...] and labels int64 [B] of the photos at `places`."""
        ...


class EpochOrder(Sampler[list[Place]]):
    """Batches of (epoch, index): a fresh permutation per epoch, from (seed, epoch) alone.

    With `weights`, float64 [N], photos are drawn with replacement in proportion to them. `start`
    batches are left out once: those that an interrupted epoch has served already. Of several processes, each
    takes every `size`-th photo of a batch, from its `rank` on: a short batch may leave it none.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        weights: NDArray[np.float64] | None = None,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self.length, self.batch_size, self.seed, self.shuffle = length, batch_size, seed, shuffle
        self.rank, self.size = rank, size
        self.probabilities = None if weights is None else weights / weights.sum()
        self.epoch = 0
        self.start = 0

    @property
    def sampler(self) -> EpochOrder:
        """Itself: Lightning calls `set_epoch` on the sampler of a loader's batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[Place]]:
        order = self._order()
        first, self.start = self.start, 0
        for at in range(first * self.batch_size, self.length, self.batch_size):
            batch = order[at : at + self.batch_size][self.rank :: self.size]
            yield [(self.epoch, int(index)) for index in batch]

    def _order(self) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self.length)
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.probabilities is not None:
            return rng.choice(self.length, self.length, p=self.probabilities)
        return rng.permutation(self.length)


class ResumableLoader(DataLoader[Batch]):
    """A DataLoader that knows how many batches of the epoch it has served.

    Lightning stores `state_dict` in every checkpoint; a plain DataLoader restarts an interrupted
    epoch at its first photo and never shows the last ones.

    Args:
        source: of the batches.
        order: of the photos.
        workers: processes that read them; 0 reads in this one.
        pinned: batches wait in page-locked memory, from which a copy to a GPU goes on beside the computing.
    """

    def __init__(self, source: Source, order: EpochOrder, *, workers: int, pinned: bool = False) -> None:
        super().__init__(
            source,  # type: ignore[arg-type]  # torch declares Dataset a class; it only needs these methods
            batch_sampler=order,
            num_workers=workers,
            pin_memory=pinned,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_stopping_to_the_parent,
        )
        self.order = order
        self.served = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # Lightning asks for an iterator only
        self.served = self.order.start
        # Named as torch names it where workers persist: Lightning ends them there when a fit fails.
        self._iterator = iterator = super().__iter__()
        try:
            for batch in iterator:
                # Counted before the batch is handed out: a checkpoint is written after it was used.
                self.served += 1
                yield batch
        except GraftError as error:
            # torch puts the traceback of the worker into the message; the last line is what the worker said.
            said = str(error).strip().splitlines()[-1]
            raise type(error)(said.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")) from error
        finally:
            # They leave SIGTERM to their parent, which would wait for ever for those that an error left behind.
            if hasattr(iterator, "_shutdown_workers"):
                iterator._shutdown_workers()

    def state_dict(self) -> dict[str, int]:
        """How many batches of the running epoch were served."""
        return {"served": self.served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out the batches that the interrupted epoch has served; none at an epoch's end."""
        self.order.start = state["served"] % len(self.order)


def _leave_stopping_to_the_parent(worker: int) -> None:
    # Ctrl-C and `timeout` tell the whole process group, and the batch being decoded is still wanted.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch
