"""When training stopped paying: the step after which no later loss is lower by more than noise. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graft.intervals import student

Curve = Sequence[tuple[int, float]]
Floats = NDArray[np.float64]

SMALL = 0.01  # of the distance from the first to the lowest loss: no gain to wait for where the seeds tell no noise
FEWEST_PHOTOS = 20  # of an evaluation: differences between two of them are far from normal


def plateau(curve: Curve, noise: float) -> int:
    """The first step whose loss no later one undercuts by more than `noise`; 0 of an empty curve."""
    lowest = min((loss for _, loss in curve), default=math.inf)
    return next((step for step, loss in curve if loss <= lowest + noise), 0)


@dataclass(frozen=True)
class Settled:
    """When an ordinary run stopped gaining.

    Attributes:
        step: optimiser steps taken at the first evaluation that no later one beats significantly.
        last: optimiser steps taken at the last evaluation.
        paired: whether the losses of single photos were compared; else a fall of SMALL of the whole one counts.
    """

    step: int
    last: int
    paired: bool

    @property
    def share_after(self) -> float:
        """Of all steps, those that came after, 0..1."""
        return (self.last - self.step) / self.last if self.last else 0.0


def settled(evaluations: Mapping[int, Floats]) -> Settled | None:
    """When no significant gain came any more; None where no evaluation has a finite loss.

    Every evaluation sees the same photos in the same order, so two of them are compared photo by photo: one is
    significantly better where the 95 % interval of the mean difference (Student's t for pairs) leaves zero out. Each
    is compared with the best of the later ones only. Where single photos are not known, or are fewer than
    FEWEST_PHOTOS, a fall of SMALL of the distance from the first to the lowest loss counts.

    Args:
        evaluations: optimiser steps taken -> cross-entropy of each photo, [N], or the mean of all, [1].
    """
    means = [(step, float(losses.mean())) for step, losses in sorted(evaluations.items()) if len(losses)]
    finite = [(step, loss) for step, loss in means if math.isfinite(loss)]
    if not finite:
        return None
    last = means[-1][0]
    counts = {len(evaluations[step]) for step, _ in finite}
    if len(counts) > 1 or min(counts) < FEWEST_PHOTOS:
        fall = SMALL * (finite[0][1] - min(loss for _, loss in finite))
        return Settled(plateau(finite, fall), last, paired=False)
    step = next(step for at, (step, _) in enumerate(finite) if not _is_beaten(evaluations, step, finite[at + 1 :]))
    return Settled(step, last, paired=True)


def _is_beaten(evaluations: Mapping[int, Floats], step: int, later: Curve) -> bool:
    """Whether the best of the later evaluations is significantly better than that of `step`."""
    if not later:
        return False
    best, _ = min(later, key=lambda point: point[1])
    differences = evaluations[step] - evaluations[best]
    count = len(differences)
    half = student(count - 1) * float(differences.std(ddof=1)) / math.sqrt(count)
    return float(differences.mean()) > half
