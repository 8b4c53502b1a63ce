"""How far a photo is from the training photos, and when an answer is doubted. Pure numpy, no torch.

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

from graft.artifacts import Doubts
from graft.errors import RunError
from graft.storage import write_atomic

DIRECTIONS = 96  # discriminants that are kept, at most: 120 breeds lose nothing by it
SHRINKAGE = 0.5  # of the within-class covariance towards a multiple of the identity; 0.1 to 0.6 measured alike
WRONG_WHEN_SURE = 0.05  # share of the answers that are not `unsure` that may be wrong on valid
KNOWN_REFUSED = 0.02  # share of valid's photos that are called none of the classes
HELD_OUT = 6  # one class of so many is held out to measure how often strangers are refused
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
    root = np.linalg.cholesky(_shrunk(features - means[members].astype(np.float32)))
    whitened = np.linalg.solve(root, (means - centre).T).T
    _, _, axes = np.linalg.svd(whitened, full_matrices=False)
    axes = axes[: max(min(DIRECTIONS, len(classes) - 1), 1)]
    directions = np.linalg.solve(root.T, axes.T)
    in_space = _unit((means - centre) @ directions)
    return Novelty(centre.astype(np.float32), directions.astype(np.float32), in_space.astype(np.float32))


def fit_doubts(
    train: tuple[Floats, Labels],
    valid: tuple[Floats, Labels],
    probabilities: Floats,
    *,
    seed: int,
) -> tuple[Novelty, Doubts]:
    """Thresholds from valid, and how often they are right.

    Args:
        train: features [N, D] and labels [N] of the training photos.
        valid: the same of the validation photos.
        probabilities: calibrated, float32 [M, C], of the validation photos.
        seed: of which classes are held out to measure strangers.
    """
    novelty = fit_novelty(*train)
    distances = novelty.distances(valid[0])
    limit = float(np.quantile(distances, 1 - KNOWN_REFUSED))
    right = probabilities.argmax(axis=1) == valid[1]
    confidence = probabilities.max(axis=1).astype(np.float64)
    threshold = sure_above(confidence, right)
    sure = confidence >= threshold
    rates = {
        "sure": float(sure.mean()),
        "wrong_when_sure": float((~right[sure]).mean()) if sure.any() else 0.0,
        "right_but_unsure": float((~sure[right]).mean()) if right.any() else 0.0,
        "known_refused": float((distances > limit).mean()),
        **_strangers(train, valid, seed),
    }
    return novelty, Doubts(threshold, limit, rates)


def sure_above(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """The lowest probability from which on at most WRONG_WHEN_SURE of the answers are wrong; 1 where there is none."""
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
    allowed = np.flatnonzero(wrong <= WRONG_WHEN_SURE)
    return float(confidence[order[allowed[-1]]]) if len(allowed) else 1.0


def held_out_classes(labels: Labels, seed: int) -> Labels:
    """One class in HELD_OUT, drawn with `seed`; none where fewer than three would stay."""
    classes = np.unique(labels)
    count = max(len(classes) // HELD_OUT, 1)
    if len(classes) - count < 3:
        return classes[:0]
    return np.sort(np.random.default_rng(seed).choice(classes, count, replace=False))


def _strangers(train: tuple[Floats, Labels], valid: tuple[Floats, Labels], seed: int) -> dict[str, float]:
    """Refusals among photos of classes that the statistics do not know, with a threshold fitted without them too."""
    held = held_out_classes(train[1], seed)
    known, strange = ~np.isin(train[1], held), np.isin(valid[1], held)
    if not len(held) or not strange.any() or strange.all():
        return {}
    distances = fit_novelty(train[0][known], train[1][known]).distances(valid[0])
    limit = np.quantile(distances[~strange], 1 - KNOWN_REFUSED)
    return {"strangers_refused": float((distances[strange] > limit).mean()), "classes_held_out": float(len(held))}


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
    level = max(float(np.trace(covariance)) / len(covariance), np.finfo(np.float32).tiny)
    found: NDArray[np.float64] = (1 - SHRINKAGE) * covariance + SHRINKAGE * level * np.eye(len(covariance))
    return found


def _unit(rows: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, np.finfo(np.float32).tiny)
