"""The features of a split as batches by index, from memory where they fit there."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from graft.features.source import FeatureSource


class Features:
    """Batches of a split: inputs [B, D] and labels int64 [B].

    Which view a photo shows in which epoch is the source's affair; it repeats after as many epochs as there are views.

    Args:
        source: the cached features.
        device: where batches are wanted.
        dtype: of the inputs.
        most_bytes: what a copy in the memory of `device` may take, half of what is free if not given; above it,
            batches are read from the source.
    """

    def __init__(
        self,
        source: FeatureSource,
        *,
        device: str,
        dtype: torch.dtype = torch.float32,
        most_bytes: float | None = None,
    ) -> None:
        self.source, self.device, self.dtype = source, device, dtype
        self.width = source.views[0].table.width
        self.labels = source.labels.to(device)
        self.views = len(source.views)
        needed = self.views * len(source) * self.width * dtype.itemsize
        self.in_memory = needed <= (free_bytes(device) / 2 if most_bytes is None else most_bytes)
        self._shown = self._read() if self.in_memory else None  # [views, N, D]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, epoch: int, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels of the photos at `index`, int64 [B], as they show in `epoch`."""
        if self._shown is None:
            inputs, labels = self.source.__getitems__([(epoch, place) for place in index.tolist()])
            return inputs.to(self.device, self.dtype), labels.to(self.device)
        index = index.to(self.device)
        return self._shown[epoch % self.views].index_select(0, index), self.labels[index]

    def _read(self) -> torch.Tensor:
        shown = torch.empty(self.views, len(self), self.width, dtype=self.dtype, device=self.device)
        for epoch in range(self.views):
            for at in range(0, len(self), 4096):
                places = [(epoch, place) for place in range(at, min(at + 4096, len(self)))]
                shown[epoch, at : at + len(places)] = self.source.__getitems__(places)[0]
        return shown


def free_bytes(device: str) -> float:
    """Memory that this process may take: of the GPU, or of the machine or the container around it."""
    if device != "cpu":
        return float(torch.cuda.mem_get_info(device)[0])
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2]
    meminfo, container = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        limits = [float(fields["MemAvailable"].split()[0]) * 1024]
    if container.exists() and (text := container.read_text().strip()).isdecimal():
        limits.append(float(text) / 2)
    return min(limits)
