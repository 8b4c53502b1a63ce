"""The processes of one run: one alone, or several that torchrun started, on one machine or more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from graft.errors import GraftError

T = TypeVar("T")

# One process may look at photos, or download them, for hours while the others wait for it.
PATIENCE = timedelta(hours=24)


@dataclass(frozen=True)
class Team:
    """This process among those of its run.

    Attributes:
        rank: of this process among all, from 0.
        size: number of processes.
        local_rank: of this process among those of its machine.
        local_size: number of processes of its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes what a run leaves."""
        return self.rank == 0

    @property
    def leads_machine(self) -> bool:
        """Whether this process writes what the processes of one machine share."""
        return self.local_rank == 0

    @property
    def machines(self) -> int:
        """Number of machines."""
        return self.size // self.local_size

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """What a person can mend in one process ends all of them with its message, not with a lost connection.

        Raises:
            GraftError: of this process, or of the first other one that has one.
        """
        error: GraftError | None = None
        try:
            yield
        except GraftError as found:
            error = found
        if self.size > 1:
            told: list[Any] = [None] * self.size
            distributed.all_gather_object(told, error)
            error = error or next((other for other in told if other), None)
        if error:
            raise error

    def part(self) -> Team:
        """End the team: each process goes on alone, and libraries that look for others find none."""
        if self.size > 1:
            distributed.destroy_process_group()
        return ALONE

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            distributed.barrier()

    def agree(self, value: T) -> T:
        """What the leader gave for `value`, in every process."""
        if self.size == 1:
            return value
        carried: list[Any] = [value]
        distributed.broadcast_object_list(carried, src=0)
        agreed: T = carried[0]
        return agreed

    def agree_on(self, array: NDArray[Any]) -> NDArray[Any]:
        """The leader's array in every process; all give one of the same shape and dtype."""
        if self.size == 1:
            return array
        raw = torch.from_numpy(np.ascontiguousarray(array).view(np.uint8).copy())
        distributed.broadcast(raw, src=0)
        return raw.numpy().view(array.dtype)

    def total(self, array: NDArray[Any]) -> NDArray[Any]:
        """The sum over the processes, number by number."""
        if self.size == 1:
            return array
        summed = torch.from_numpy(np.ascontiguousarray(array).copy())
        distributed.all_reduce(summed)
        return summed.numpy()


ALONE = Team()


@contextmanager
def join_team(device: str) -> Iterator[Team]:
    """The team that torchrun's environment variables describe; this process alone where there are none.

    Args:
        device: cpu or cuda; on cuda the process takes the GPU of its local rank.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE
        return
    rank, size, local_rank, local_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Team(rank, size, local_rank, local_size)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
