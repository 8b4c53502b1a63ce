"""Cached features as what batches are read from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from graft.data.loader import Batch, Place
from graft.features.extract import Extracted


class FeatureSource:
    """Vectors float32 [B, D] and labels int64 [B].

    With several views, a photo shows another one in every epoch, and photos are spread over the
    views within an epoch: photo i shows view (epoch + i) mod the number of views.
    """

    def __init__(self, views: Sequence[Extracted], labels: NDArray[np.int64]) -> None:
        self.views, self.labels = views, torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, places: list[Place]) -> Batch:
        """See `Source`."""
        index = np.array([place for _, place in places], np.int64)
        shown = np.array([(epoch + place) % len(self.views) for epoch, place in places], np.int64)
        out = np.empty((len(places), self.views[0].table.width), np.float32)
        for number in np.unique(shown):
            mine, view = shown == number, self.views[number]
            out[mine] = view.table.features(view.rows[index[mine]])
        return torch.from_numpy(out), self.labels[index]
