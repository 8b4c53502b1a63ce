"""Augmentation and normalisation on top of the one decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from graft.images import View

VIEW_VERSION = 1  # raised whenever `random_view` gives other crops: cached features name it
SCALE = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)


def random_view(width: int, height: int, rng: np.random.Generator) -> View:
    """A random crop of 8 to 100 % of the area, aspect 3/4 to 4/3, flipped half of the time.

    The crop of Szegedy et al., "Going Deeper with Convolutions" (2014), as torchvision's
    RandomResizedCrop draws it, on a generator of its own: torchvision's uses the global one, and the
    view of a photo must not depend on which photos were drawn before.

    Args:
        width: of the upright photo, pixels.
        height: likewise.
        rng: the source of randomness.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*SCALE)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            return _placed(width, height, crop_width, crop_height, rng)
    # No crop fits a very long photo: the largest centred one of an allowed aspect.
    aspect = min(max(width / height, ASPECT[0]), ASPECT[1])
    crop_width, crop_height = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return View(left, top, left + crop_width, top + crop_height, flip=bool(rng.integers(2)))


def _placed(width: int, height: int, crop_width: int, crop_height: int, rng: np.random.Generator) -> View:
    left = int(rng.integers(width - crop_width + 1))
    top = int(rng.integers(height - crop_height + 1))
    return View(left, top, left + crop_width, top + crop_height, flip=bool(rng.integers(2)))


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Pixels to what the backbone expects.

    Args:
        images: uint8 [B, S, S, 3].
        mean: per channel, of pixels in 0..1.
        std: likewise.

    Returns:
        float32 [B, 3, S, S], (pixel / 255 - mean) / std.
    """
    # A trace that made them and its check that finds them would differ, so tracing makes its own.
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    constants = _scale_and_shift.__wrapped__ if tracing else _scale_and_shift
    scale, shift = constants(tuple(mean), tuple(std), images.device)
    return (images.float() * scale - shift).permute(0, 3, 1, 2)


# Kept, because bringing them to a GPU anew would make every batch wait for the one before.
@lru_cache(maxsize=16)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    # What is made in inference mode could not be used in training later.
    with torch.inference_mode(False):
        scale = torch.empty(0, device=device).new_tensor([1 / (255 * value) for value in std])
        shift = scale.new_tensor([m / s for m, s in zip(mean, std, strict=True)])
    return scale, shift
