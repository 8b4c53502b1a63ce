"""How far a photo is from those a model was trained on, told from its features; numpy alone, so that serving can.

Features are projected on their first principal components and whitened by the covariance within classes, shrunk
towards the identity (Ledoit and Wolf 2004); the distance is one minus the cosine of the angle to the nearest class
mean, seen from the mean of all. docs/decisions/0016-doubts.md has what else was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graft.directions import principal_directions
from graft.errors import RunError
from graft.storage import write_atomic

FILE = "novelty.safetensors"
DIMENSIONS = 64
SHRINKAGE = 0.1
TINY = np.float32(1e-12)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Novelty:
    """The training features, as what distances are told from.

    Attributes:
        centre: float32 [D], the mean of all.
        basis: float32 [D, d], projects and whitens.
        means: float32 [C, d], unit vectors to the means of the classes.
    """

    centre: Floats
    basis: Floats
    means: Floats

    def distances(self, features: Floats) -> Floats:
        """Of each photo from the nearest class: float32 [B], 0..2, of features [B, D]."""
        found: Floats = 1 - (_unit((features - self.centre) @ self.basis) @ self.means.T).max(axis=1)
        return found


def fit_novelty(features: Floats, labels: NDArray[np.int64]) -> Novelty:
    """Distances from these training photos.

    Args:
        features: float32 [N, D].
        labels: int64 [N]; a class without a photo is no class.
    """
    classes, owner = np.unique(labels, return_inverse=True)
    centre = features.mean(axis=0)
    centred = features - centre
    means = np.stack([centred[owner == number].mean(axis=0) for number in range(len(classes))])
    dimensions = max(min(DIMENSIONS, features.shape[1], len(features) // 4), 1)
    _, directions = principal_directions(centred, dimensions, np.random.default_rng(0))
    within = (centred - means[owner]) @ directions
    covariance = within.T @ within / len(within)
    share = np.trace(covariance) / dimensions
    variance, rotation = np.linalg.eigh((1 - SHRINKAGE) * covariance + SHRINKAGE * share * np.eye(dimensions))
    basis = (directions @ rotation / np.sqrt(np.maximum(variance, TINY))).astype(np.float32)
    return Novelty(centre, basis, _unit(means @ basis))


def write_novelty(bundle: Path, novelty: Novelty) -> None:
    """Write it beside the model."""
    from safetensors.numpy import save

    tensors = {"centre": novelty.centre, "basis": novelty.basis, "means": novelty.means}
    write_atomic(bundle / FILE, save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))


def read_novelty(bundle: Path) -> Novelty:
    """Read it back.

    Raises:
        RunError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return Novelty(**load_file(bundle / FILE))
    except (OSError, SafetensorError, TypeError) as error:
        raise RunError(f"{bundle / FILE} cannot be read ({error}); copy the bundle again") from error


def _unit(vectors: Floats) -> Floats:
    """Rows of length one; a zero row stays zero."""
    scaled: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), TINY)
    return scaled
