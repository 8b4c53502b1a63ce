"""How far a photo is from the training photos, told from its features. Pure numpy, no torch.

The distance is 1 - cosine to the nearest class mean, in the space of linear discriminants (Fisher 1936; Hastie et
al., "The Elements of Statistical Learning", 4.3) of the features, with the within-class covariance shrunk
(Friedman 1989, "Regularized Discriminant Analysis"). docs/decisions/0016 has what else was tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graft.errors import RunError
from graft.storage import write_atomic

DIRECTIONS = 96  # discriminants that are kept, at most: 120 breeds lose nothing by it
SHRINKAGE = 0.5  # of the within-class covariance towards a multiple of the identity; 0.1 to 0.6 measured alike
TINY = float(np.finfo(np.float32).tiny)
NOVELTY_FILE = "novelty.safetensors"

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Novelty:
    """Where the training photos lie.

    Attributes:
        centre: float32 [D], the mean of the training features.
        directions: float32 [D, K], the discriminants.
        means: float32 [C, K], the class means there, of length 1.
    """

    centre: Floats
    directions: Floats
    means: Floats

    def distances(self, features: Floats) -> Floats:
        """1 - cosine to the nearest class mean, float32 [B] in 0..2, of features [B, D]."""
        cosines = _unit((features - self.centre) @ self.directions) @ self.means.T
        found: Floats = 1 - cosines.max(axis=1)
        return found


def fit_novelty(features: Floats, labels: Labels) -> Novelty:
    """Where training photos lie.

    Args:
        features: float32 [N, D].
        labels: int64 [N]; classes without photos have no mean.
    """
    classes, members = np.unique(labels, return_inverse=True)
    share = np.zeros((len(classes), len(labels)), np.float32)
    share[members, np.arange(len(labels))] = 1 / np.bincount(members)[members]
    means = (share @ features).astype(np.float64)
    centre = features.mean(axis=0, dtype=np.float64)
    covariance = _shrunk(features - means[members].astype(np.float32))
    root = np.linalg.cholesky(covariance)
    whitened = np.linalg.solve(root, (means - centre).T).T
    _, _, axes = np.linalg.svd(whitened, full_matrices=False)
    axes = axes[: max(min(DIRECTIONS, len(classes) - 1), 1)]
    # Cosines know no scale: of length one, directions of features that hardly vary stay numbers that float32 holds.
    directions = np.linalg.solve(root.T, axes.T)
    directions /= max(float(np.linalg.norm(directions)), TINY)
    in_space = _unit((means - centre) @ directions)
    return Novelty(centre.astype(np.float32), directions.astype(np.float32), in_space.astype(np.float32))


def write_novelty(path: Path, novelty: Novelty) -> None:
    """Write it into a bundle."""
    from safetensors.numpy import save

    tensors = {"centre": novelty.centre, "directions": novelty.directions, "means": novelty.means}
    write_atomic(path / NOVELTY_FILE, save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))


def read_novelty(path: Path) -> Novelty:
    """What `write_novelty` wrote.

    Raises:
        RunError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return Novelty(**load_file(path / NOVELTY_FILE))
    except (OSError, SafetensorError, TypeError) as error:
        raise RunError(f"{path}/{NOVELTY_FILE} cannot be read ({error}); copy the bundle again") from error


def _shrunk(residuals: Floats) -> NDArray[np.float64]:
    # The product in float32: it is most of the work, 50 GFLOP for 6,000 photos of 2,048 features.
    covariance = (residuals.T @ residuals).astype(np.float64) / len(residuals)
    level = max(float(np.trace(covariance)) / len(covariance), TINY)
    found: NDArray[np.float64] = (1 - SHRINKAGE) * covariance + SHRINKAGE * level * np.eye(len(covariance))
    return found


def _unit(rows: NDArray[Any]) -> NDArray[Any]:
    """Rows of length one; a row of zeros stays one."""
    found: NDArray[Any] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), TINY)
    return found
