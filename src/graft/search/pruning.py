"""When a trial is hopeless: rungs in optimiser steps, what must be reached at one, and divergence. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from graft.search.trials import Point

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


def divergence(first_loss: float, curve: Sequence[Point], *, finished: bool) -> str:
    """Why a trial has diverged, as a sentence; empty where it has not.

    It has where a loss is not finite, and where its losses on train and on valid stay above three times its first
    one: at two ends of epochs in a row, or at the only one. A high learning rate often throws the first steps far
    off and then recovers, and a high loss on valid alone is overfitting. Rungs do not count, so that the state of
    a trial does not depend on how often it was looked at.

    Args:
        first_loss: training loss of the first step, before anything was learnt.
        curve: the points so far.
        finished: whether the trial has taken all its steps.
    """
    last = curve[-1]
    for name, loss in (("train/loss", last.train_loss), ("valid/loss", last.valid_loss)):
        if not math.isfinite(loss):
            return f"{name} was {loss} at step {last.step}"
    ends = [min(point.train_loss, point.valid_loss) for point in curve if point.ends_epoch][-2:]
    stayed = last.ends_epoch and (len(ends) == 2 or finished) and min(ends) > TOO_HIGH * first_loss
    reached = ", then ".join(f"{loss:.3g}" for loss in ends)
    return f"loss stayed above {TOO_HIGH:g} times its first value, {first_loss:.3g}: {reached}" if stayed else ""
