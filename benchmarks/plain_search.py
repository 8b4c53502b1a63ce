"""The usual ways of a search, run by benchmarks.search in a process of their own: nothing is kept between epochs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import datasets, transforms

from graft.features.engines import resolve
from graft.model import build_backbone, build_head, feature_width

EVAL = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


class Plain:
    """A plain loop over photos: decode, frozen backbone, head, in every epoch.

    Args:
        request: what benchmarks.search asks for. Its `memo` keeps the features of the plain loop, which is not timed
            then: the losses of a frozen backbone in eval mode are the same, and other seeds cost seconds.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.reference = request["way"] == "b"
        self.backbone = build_backbone(request["backbone"], weights=request["weights"], seed=0).eval()
        self.autocast = self.reference and resolve("torch", "auto", "cpu")[1] == "bf16"
        if self.reference:
            self.backbone = self.backbone.to(memory_format=torch.channels_last)
        self.width = feature_width(self.backbone)
        self.photos = {split: self._photos(split) for split in ("train", "valid")}
        self.classes = len(self.photos["train"].classes)
        self.sets: dict[str, Dataset[Any]] = dict(self.photos)
        if request["memo"]:
            self.sets = {split: self._features_of(photos) for split, photos in self.photos.items()}

    def search(self) -> dict[str, Any]:
        """Run the trials; seconds, photos looked at, and by seed the lowest valid loss of each trial."""
        started = time.perf_counter()
        losses = [
            [self._trial(lr, batch, seed) for lr, batch in self.request["pairs"]] for seed in self.request["seeds"]
        ]
        trials = len(self.request["pairs"]) * len(self.request["seeds"])
        looked = trials * self.request["epochs"] * sum(len(photos) for photos in self.photos.values())
        return {"seconds": time.perf_counter() - started, "looked": looked, "losses": losses}

    def _trial(self, lr: float, batch_size: int, seed: int) -> float:
        torch.manual_seed(seed)
        train = self._loader(self.sets["train"], batch_size, shuffle=True)
        valid = self._loader(self.sets["valid"], 256)
        head = build_head(self.width, 512, self.classes, seed=seed)
        optimizer = torch.optim.Adam(head.parameters(), lr=lr)
        lowest = float("inf")
        for _ in range(self.request["epochs"]):
            for features, labels in self._features(train):
                optimizer.zero_grad()
                nn.functional.cross_entropy(head(features), labels).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            with torch.no_grad():
                sums = [
                    (float(nn.functional.cross_entropy(head(features), labels, reduction="sum")), len(labels))
                    for features, labels in self._features(valid)
                ]
            lowest = min(lowest, sum(loss for loss, _ in sums) / sum(count for _, count in sums))
        return lowest

    def _features(self, loader: DataLoader[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for inputs, labels in loader:
            yield inputs if inputs.ndim == 2 else self._backbone(inputs), labels

    def _backbone(self, images: torch.Tensor) -> torch.Tensor:
        if self.reference:
            images = images.to(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext():
            features: torch.Tensor = self.backbone(images).float()
        return features

    def _features_of(self, photos: datasets.ImageFolder) -> TensorDataset:
        parts = [(self._backbone(images), labels) for images, labels in self._loader(photos, 32)]
        return TensorDataset(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _photos(self, split: str) -> datasets.ImageFolder:
        return datasets.ImageFolder(str(Path(self.request["photos"]) / split), EVAL, loader=_open)

    def _loader(self, photos: Dataset[Any], batch_size: int, *, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(photos, batch_size, shuffle=shuffle, num_workers=2 if self.reference else 0)


def _open(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


if __name__ == "__main__":
    print(json.dumps(Plain(json.loads(sys.argv[1])).search()))
