"""The model of a bundle in this process: `graft.load(bundle)(photo)`. Needs neither Lightning nor Hydra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from graft.artifacts import Manifest, read_manifest, read_tensors
from graft.errors import RunError
from graft.images import render
from graft.model import build_backbone, build_head, feature_width
from graft.transforms import normalise

Photo = str | Path | bytes


@dataclass(frozen=True)
class Guess:
    """One class and its calibrated probability, 0..1."""

    label: str
    index: int
    probability: float


class Predictor:
    """Photos to classes, in fp32 torch on the CPU.

    Args:
        bundle: the folder `bundle/` of a run.

    Raises:
        RunError: no bundle, a damaged one, or one of another version.
    """

    def __init__(self, bundle: Path) -> None:
        self.manifest: Manifest = read_manifest(bundle)
        self.backbone = build_backbone(self.manifest.backbone, weights="none")
        self.head = build_head(
            feature_width(self.backbone), self.manifest.hidden, len(self.manifest.class_names), seed=0
        )
        modules = torch.nn.ModuleDict({"backbone": self.backbone, "head": self.head})
        tensors = {name: torch.from_numpy(value) for name, value in read_tensors(bundle).items()}
        try:
            modules.load_state_dict(tensors)
        except RuntimeError as error:
            found = f"a {self.manifest.backbone} with {len(self.manifest.class_names)} classes"
            raise RunError(f"{bundle}/model.safetensors is not what manifest.json says, {found}") from error
        modules.eval().requires_grad_(False)

    def logits(self, photos: Sequence[Photo]) -> NDArray[np.float32]:
        """Logits float32 [N, C] of photos: paths or encoded bytes."""
        spec = self.manifest.input
        pixels = np.stack([render(_bytes(photo), spec).pixels for photo in photos])
        return self.logits_and_features(pixels)[0]

    def logits_and_features(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits float32 [B, C] and features float32 [B, D] of squares uint8 [B, S, S, 3]."""
        spec = self.manifest.input
        with torch.inference_mode():
            features = self.backbone(normalise(torch.from_numpy(pixels), spec.mean, spec.std))
            return self.head(features).numpy(), features.numpy()

    def __call__(self, photo: Photo, top_k: int = 5) -> list[Guess]:
        """The likeliest classes of a photo, the likeliest first."""
        scaled = torch.from_numpy(self.logits([photo])[0]) / self.manifest.temperature
        probabilities, indices = scaled.softmax(0).topk(min(top_k, len(scaled)))
        names = self.manifest.class_names
        pairs = zip(indices.tolist(), probabilities.tolist(), strict=True)
        return [Guess(names[index], index, probability) for index, probability in pairs]


def _bytes(photo: Photo) -> bytes:
    return photo if isinstance(photo, bytes) else Path(photo).read_bytes()
