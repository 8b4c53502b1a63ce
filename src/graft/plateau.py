"""When training stopped paying: the step after which no later loss is lower by more than noise. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graft.intervals import student

Curve = Sequence[tuple[int, float]]

SMALL = 0.01  # of the distance from the first to the lowest loss: no gain to wait for where the seeds tell no noise
FEWEST_BATCHES = 3  # of an evaluation: two differences have no spread to speak of


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
        paired: whether single batches were compared; else a fall of SMALL of the whole one counts.
    """

    step: int
    last: int
    paired: bool

    @property
    def share_after(self) -> float:
        """Of all steps, those that came after, 0..1."""
        return (self.last - self.step) / self.last if self.last else 0.0


def settled(losses: Mapping[int, Sequence[float]]) -> Settled | None:
    """When no significant gain came any more; None where nothing was evaluated.

    Every evaluation sees the same photos in the same batches, so two of them are compared batch by batch: a later
    one is significantly better where the 95 % interval of the mean difference (Student's t over batches) leaves zero
    out. Only the best later evaluation is compared with each. Where an evaluation has fewer than FEWEST_BATCHES
    batches, or not all have the same number, a fall of SMALL of the distance from the first to the lowest loss counts.

    Args:
        losses: optimiser steps taken at an evaluation -> the loss of each of its batches.
    """
    means = [(step, sum(batches) / len(batches)) for step, batches in sorted(losses.items()) if batches]
    finite = [(step, loss) for step, loss in means if math.isfinite(loss)]
    if not finite:
        return None
    last = means[-1][0]
    counts = {len(losses[step]) for step, _ in finite}
    if len(counts) > 1 or min(counts) < FEWEST_BATCHES:
        fall = SMALL * (finite[0][1] - min(loss for _, loss in finite))
        return Settled(plateau(finite, fall), last, paired=False)
    step = next(step for place, (step, _) in enumerate(finite) if not _is_beaten(losses, step, finite[place + 1 :]))
    return Settled(step, last, paired=True)


def _is_beaten(losses: Mapping[int, Sequence[float]], step: int, later: Curve) -> bool:
    """Whether the best of the later evaluations is significantly better than that of `step`."""
    return bool(later) and _is_lower(losses[min(later, key=lambda point: point[1])[0]], losses[step])


def _is_lower(losses: Sequence[float], others: Sequence[float]) -> bool:
    """Whether losses are lower than others, [N] each and paired, beyond their 95 % interval."""
    differences = [other - loss for loss, other in zip(losses, others, strict=True)]
    count = len(differences)
    mean = sum(differences) / count
    variance = sum((difference - mean) ** 2 for difference in differences) / (count - 1)
    return mean > student(count - 1) * math.sqrt(variance / count)
