"""What a search has taught: gain over the default, when training stopped paying, what epochs explain. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graft.intervals import student
from graft.plateau import SMALL, Curve, plateau


@dataclass(frozen=True)
class Gain:
    """How much better one configuration is than another, on the same seeds.

    Attributes:
        mean: of the differences, positive where it is better.
        low: of the 95 % interval by Student's t over seeds.
        high: likewise.
        seeds: how many.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Epochs:
    """When the training of a search stopped paying.

    Attributes:
        step: of the best trial, after which its loss did not fall by more than `noise`.
        last: the last step of the best trial.
        wasted: share of the photos that the search trained on, each as often as it was, that came after each trial's
            own such step.
        noise: what a fall of the loss must exceed.
        from_seeds: whether the noise is that of seeds.
    """

    step: int
    last: int
    wasted: float
    noise: float
    from_seeds: bool


@dataclass(frozen=True)
class Skew:
    """How much of the objective's variance between trials the epochs explain.

    Attributes:
        share: epsilon squared of a one-way analysis of variance, 0..1: adjusted for the number of groups
            (Kelley 1935).
        trials: that count.
    """

    share: float
    trials: int


def gain(better: Sequence[float], worse: Sequence[float], *, maximize: bool) -> Gain | None:
    """The gain of one configuration over another; None of fewer than two seeds.

    Args:
        better: objective by seed.
        worse: likewise, of the same seeds.
        maximize: whether more is better.
    """
    pairs = [(b, w) for b, w in zip(better, worse, strict=True) if math.isfinite(b) and math.isfinite(w)]
    if len(pairs) < 2:
        return None
    differences = [(b - w) if maximize else (w - b) for b, w in pairs]
    mean, sd = float(np.mean(differences)), float(np.std(differences, ddof=1))
    half = student(len(pairs) - 1) * sd / math.sqrt(len(pairs))
    return Gain(mean, mean - half, mean + half, len(pairs))


def epoch_advice(
    best: Curve, curves: Sequence[Curve], batch_sizes: Sequence[int], seed_losses: Sequence[float]
) -> Epochs | None:
    """When the best trial, and all of them, stopped gaining; None without a curve of the best.

    Args:
        best: (optimiser step, valid/loss) of the best trial, ascending.
        curves: of all trials.
        batch_sizes: of the same trials: a step costs as much as the photos it takes.
        seed_losses: the lowest loss of the best configuration by seed: two standard deviations are the noise.
    """
    losses = [loss for _, loss in best if math.isfinite(loss)]
    if not losses:
        return None
    known = [loss for loss in seed_losses if math.isfinite(loss)]
    from_seeds = len(known) >= 3
    noise = 2 * float(np.std(known, ddof=1)) if from_seeds else SMALL * (max(losses) - min(losses))
    ends = [
        (size * plateau(curve, noise), size * curve[-1][0])
        for size, curve in zip(batch_sizes, curves, strict=True)
        if curve
    ]
    total = sum(last for _, last in ends)
    wasted = sum(last - useful for useful, last in ends) / total if total else 0.0
    return Epochs(plateau(best, noise), best[-1][0], wasted, noise, from_seeds)


def skew(epochs: Sequence[Hashable], values: Sequence[float]) -> Skew | None:
    """How much epochs explain; None where every trial had the same, or too few share a number of epochs."""
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for epoch, value in zip(epochs, values, strict=True):
        if math.isfinite(value):
            groups[epoch].append(value)
    found = [value for group in groups.values() for value in group]
    freedom = len(found) - len(groups)
    if len(groups) < 2 or freedom < 1:
        return None
    mean = float(np.mean(found))
    total = sum((value - mean) ** 2 for value in found)
    within = sum((value - float(np.mean(group))) ** 2 for group in groups.values() for value in group)
    if total == 0:
        return Skew(0.0, len(found))
    share = (total - within - (len(groups) - 1) * within / freedom) / total
    return Skew(max(0.0, share), len(found))


def best_number(values: Mapping[int, float], *, maximize: bool) -> int:
    """The number of the best value, the lowest number where several are."""
    sign = -1.0 if maximize else 1.0
    return min(values, key=lambda number: (sign * values[number], number))
