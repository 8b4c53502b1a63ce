"""The features of a split as batches by index, from memory where they fit there."""

from __future__ import annotations

import torch

from graft.features.source import FeatureSource


class Features:
    """Batches of a split: inputs [B, D] and labels int64 [B].

    Which view a photo shows in which epoch is the source's affair; it repeats after as many epochs as there are views.

    Args:
        source: the cached features.
        device: where batches are wanted.
        dtype: of the inputs.
        most_bytes: what a copy in the memory of `device` may take; above it, batches are read from the source.
    """

    def __init__(self, source: FeatureSource, *, device: str, dtype: torch.dtype, most_bytes: float) -> None:
        self.source, self.device, self.dtype = source, device, dtype
        self.width = source.views[0].table.width
        self.labels = source.labels.to(device)
        self.views = len(source.views)
        needed = self.views * len(source) * self.width * dtype.itemsize
        self.bytes_held = needed if needed <= most_bytes else 0
        self._shown = self._read() if self.bytes_held else None  # [views, N, D]

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
