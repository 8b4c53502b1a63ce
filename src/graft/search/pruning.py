"""When a trial is hopeless: rungs in optimiser steps, and what must be reached at one. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

TOO_HIGH = 3.0  # times its first value: a loss that stays above has diverged
FEWEST = 4  # trials at a rung before the median of the others says anything


def rungs(shortest: int, longest: int) -> tuple[int, ...]:
    """Optimiser steps at which trials are compared: doubling, from an eighth of the shortest trial of a space.

    Steps and not epochs, so that a trial with small batches is not compared after eight times the updates.

    Args:
        shortest: steps of the shortest trial.
        longest: steps of the longest.
    """
    found, step = [], max(1, shortest // 8)
    while step < longest:
        found.append(step)
        step *= 2
    return tuple(found)


def hopeless(pruner: str, number: int, reached: Mapping[int, float], *, maximize: bool) -> bool:
    """Whether a trial is stopped at a rung.

    Args:
        pruner: none, halving (the worse half of all that reached this rung stops) or median (what is worse than the
            median of the others stops, once there are four of them).
        number: of the trial; trial 0 is what the others are compared with, and never stopped.
        reached: number -> what trials had reached at this rung, this one included.
        maximize: whether more is better.
    """
    if pruner == "none" or number == 0:
        return False
    sign = -1.0 if maximize else 1.0
    cost = {other: sign * value if math.isfinite(value) else math.inf for other, value in reached.items()}
    if pruner == "median":
        others = [value for other, value in cost.items() if other != number]
        return len(others) >= FEWEST and cost[number] > statistics.median(others)
    # ties by number, so that the same trials stop whoever asks first
    ranked = sorted(cost, key=lambda other: (cost[other], other))
    return ranked.index(number) >= math.ceil(len(ranked) / 2)


def divergence(first: float, losses: Sequence[float]) -> str:
    """Why a trial has diverged, as a sentence; empty where it has not.

    Args:
        first: its loss before it learnt anything.
        losses: on valid, in the order they were measured.
    """
    if losses and not any(math.isfinite(loss) for loss in losses):
        return "valid/loss was never finite"
    if losses and not math.isfinite(losses[-1]):
        return "valid/loss is no longer finite"
    if losses and min(losses) > TOO_HIGH * first:
        return f"valid/loss stayed above {TOO_HIGH:.0f} times its first value ({min(losses):.3g} against {first:.3g})"
    return ""
