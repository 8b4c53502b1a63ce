"""ImageData: the LightningDataModule over a folder of photos, or over the cached features of one."""

from __future__ import annotations

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from graft.data.folder import Split
from graft.data.loader import Batch, EpochOrder, Place, ResumableLoader, Source
from graft.environment import available_cores
from graft.images import render
from graft.inputs import InputSpec
from graft.transforms import random_view


class ImageData(pl.LightningDataModule):
    """Training and validation batches: (inputs, labels int64 [B]).

    Inputs are images, uint8 [B, S, S, 3], unless `train_source` and `valid_source` read features.

    Args:
        train: the training split; every photo must be decodable (see `graft.data.checks`).
        valid: the validation split.
        spec: what the backbone expects of an image.
        batch_size: images per optimiser step, in all processes together.
        balance: `sampler` draws every class equally often; `none` and `loss` draw every photo once.
        augment: random crop and flip of training images.
        workers: loader processes for images; 0 decodes in this process.
        seed: of order and augmentation.
        train_source: features instead of images, in the order of `train`.
        valid_source: likewise for `valid`.
        rank: of this process.
        size: number of processes.
        pinned: batches are put in page-locked memory, on their way to a GPU.
    """

    def __init__(
        self,
        train: Split,
        valid: Split,
        *,
        spec: InputSpec,
        batch_size: int,
        balance: str = "none",
        augment: bool = True,
        workers: int = 0,
        seed: int = 0,
        train_source: Source | None = None,
        valid_source: Source | None = None,
        rank: int = 0,
        size: int = 1,
        pinned: bool = False,
    ) -> None:
        super().__init__()
        self.labels = train.labels()
        self.num_classes = len(train.class_names)
        self.batch_size, self.seed = batch_size, seed
        self.balance = balance
        self.rank, self.size, self.pinned = rank, size, pinned
        self.workers = 0 if train_source else workers
        self.train_source = train_source or ImageSource(train, spec, augment_seed=seed if augment else None)
        self.valid_source = valid_source or ImageSource(valid, spec)

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled by (seed, epoch); continues an interrupted epoch."""
        weights = inverse_frequency(self.labels, self.num_classes)[self.labels] if self.balance == "sampler" else None
        order = EpochOrder(
            len(self.train_source),
            self.batch_size,
            seed=self.seed,
            shuffle=True,
            weights=weights,
            rank=self.rank,
            size=self.size,
        )
        return ResumableLoader(self.train_source, order, workers=self.workers, pinned=self.pinned)

    def val_dataloader(self) -> ResumableLoader:
        """In the order of the split."""
        portion = max(256, self.batch_size)
        order = EpochOrder(len(self.valid_source), portion, seed=0, shuffle=False, rank=self.rank, size=self.size)
        return ResumableLoader(self.valid_source, order, workers=self.workers, pinned=self.pinned)


class ImageSource:
    """Images decoded on the way: uint8 [B, S, S, 3], and labels int64 [B].

    With `augment_seed`, the crop and flip of a photo depend on (seed, epoch, index) alone, so that a
    resumed or repeated run sees the same pixels, whichever process decodes them.
    """

    def __init__(self, split: Split, spec: InputSpec, augment_seed: int | None = None) -> None:
        self.split, self.spec, self.augment_seed = split, spec, augment_seed
        self.labels = torch.from_numpy(split.labels())

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, places: list[Place]) -> Batch:
        images = np.empty((len(places), self.spec.image_size, self.spec.image_size, 3), np.uint8)
        for slot, place in enumerate(places):
            images[slot] = self._pixels(*place)
        return torch.from_numpy(images), self.labels[np.array([index for _, index in places], np.int64)]

    def _pixels(self, epoch: int, index: int) -> NDArray[np.uint8]:
        data = self.split.read(index)
        if self.augment_seed is None:
            return render(data, self.spec).pixels
        rng = np.random.default_rng([self.augment_seed, epoch, index])
        return render(data, self.spec, lambda width, height: random_view(width, height, rng)).pixels


def inverse_frequency(labels: NDArray[np.int64], num_classes: int) -> NDArray[np.float64]:
    """Weight per class, float64 [C], such that every class that occurs has the same total; mean 1 over photos."""
    counts = np.bincount(labels, minlength=num_classes)
    weights = np.where(counts > 0, len(labels) / np.maximum(counts, 1), 0.0)
    balanced: NDArray[np.float64] = weights / max(np.count_nonzero(counts), 1)
    return balanced


def default_workers(workers: int | None) -> int:
    """The number asked for, or one per core this process may use."""
    return available_cores() if workers is None else workers


def class_counts(split: Split) -> dict[str, int]:
    """Photos per class, every class named.

    Raises:
        DataError: the split is sealed.
    """
    counts = np.bincount(split.labels(), minlength=len(split.class_names))
    return dict(zip(split.class_names, counts.tolist(), strict=True))
