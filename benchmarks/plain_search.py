"""The usual ways of a search, run by benchmarks.search in a process of their own: nothing is kept between trials."""

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
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from graft.model import build_backbone, build_head, feature_width

EVAL = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


class Enough(Exception):
    """As many photos were looked at as were asked for."""


class Plain:
    """A plain loop over photos: decode, frozen backbone, head, in every epoch.

    Args:
        request: what benchmarks.search asks for.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.reference = request["way"] == "b"
        torch.manual_seed(request["seed"])
        self.backbone = build_backbone(request["backbone"], weights=request["weights"], seed=0).eval()
        if self.reference:
            self.backbone = self.backbone.to(memory_format=torch.channels_last)
        self.looked = 0

    def search(self) -> dict[str, float]:
        """Run the trials; seconds, the lowest valid loss of the last, photos looked at."""
        losses = [float("nan")]
        started = time.perf_counter()
        try:
            for lr, batch_size in self.request["pairs"]:
                losses.append(self._trial(lr, batch_size))
        except Enough:
            pass
        return {"seconds": time.perf_counter() - started, "loss": losses[-1], "looked": self.looked}

    def _trial(self, lr: float, batch_size: int) -> float:
        train, valid = self._loader("train", batch_size), self._loader("valid", 256)
        classes = len(train.dataset.classes)  # type: ignore[attr-defined]
        head = build_head(feature_width(self.backbone), 512, classes, seed=self.request["seed"])
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
        for images, labels in loader:
            if self.reference:
                images = images.to(memory_format=torch.channels_last)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16) if self.reference else nullcontext():
                features = self.backbone(images).float()
            self.looked += len(labels)
            yield features, labels
            if self.request["most"] is not None and self.looked >= self.request["most"]:
                raise Enough

    def _loader(self, split: str, batch_size: int) -> DataLoader[Any]:
        folder = datasets.ImageFolder(str(Path(self.request["photos"]) / split), EVAL, loader=_open)
        workers = 2 if self.reference else 0
        return DataLoader(folder, batch_size, shuffle=split == "train", num_workers=workers)


def _open(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


if __name__ == "__main__":
    print(json.dumps(Plain(json.loads(sys.argv[1])).search()))
