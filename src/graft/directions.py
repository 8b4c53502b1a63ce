"""Principal directions of features, by a randomised range finder: numpy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SPARE = 32  # directions more than wanted, which makes the last ones good
ROUNDS = 4

Floats = NDArray[np.float32]


def principal_directions(
    centred: Floats, count: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The directions along which vectors vary most, the most first (Halko, Martinsson and Tropp 2011).

    All eigenvectors of 2,048 numbers would take seconds.

    Args:
        centred: float32 [N, D], of mean zero.
        count: directions wanted, at most D.
        rng: of the random start.

    Returns:
        Variances [count], and orthonormal columns [D, count].
    """
    width = centred.shape[1]
    span = rng.standard_normal((width, min(count + SPARE, width)), np.float32)
    for _ in range(ROUNDS):
        span, _ = np.linalg.qr(centred.T @ (centred @ span))
    inside = (centred @ span).astype(np.float64)
    variance, directions = np.linalg.eigh(inside.T @ inside / len(centred))
    return variance[::-1][:count], span @ directions[:, ::-1][:, :count]
