"""Rules over the training loss: whether it is a number, falls, rises, or jumps about."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from graft.debugger.records import EVAL, TRAIN, Records
from graft.debugger.rule import Rule, Verdict
from graft.diagnosis import Finding

SAGEMAKER = "https://docs.aws.amazon.com/sagemaker/latest/dg/debugger-built-in-rules.html"

NUM_STEPS = 10  # LossNotDecreasing.num_steps
DIFF_PERCENT = 0.1  # LossNotDecreasing.diff_percent, for each NUM_STEPS
DIFF_PERCENT_IN_ALL = 10.0  # which is enough however long the run: 0.1 % for ever is more than a loss can fall
INCREASE_PERCENT = 5.0  # LossNotDecreasing.increase_threshold_percent
BLOCKS = 10  # a run is judged in tenths, so that one batch decides nothing
NOISE = 0.5  # measured on dogs: 0.11 with batches of 128, 0.27 with 32, 0.99 with 2
NOISE_WINDOW = 20  # steps
NOISE_WINDOWS = 3
LEARNT = 0.1  # a loss below this share of the first one: the classes are learnt


def nan_or_inf(records: Records) -> Verdict:
    """A loss, a gradient or a weight that is no number any more: nothing that comes after it is."""
    places = _not_finite(records)
    points = len(records.table("losses")["step"]) + len(records.table("layers")["step"])
    if not places:
        return Verdict(points)
    step, what = min(places)
    lr = records.facts.learning_rate
    return Verdict(
        points,
        len(places),
        Finding(
            rule="nan_or_inf",
            seen=f"{what} is not a finite number after {step} optimiser steps, and {len(places) - 1} later values",
            why="every weight that such a number reaches is lost, and the run cannot recover",
            change=f"optim.lr={lr / 10:g}" if step else "model.weights: what the backbone gives is no number already",
            key="optim.lr" if step else "model.weights",
            gain="the best epoch before that step is kept; a lower rate would let the steps after it count too",
            since_step=step,
        ),
    )


def loss_not_decreasing(records: Records) -> Verdict:
    """The loss of the last tenth of the run against that of the first; chance alone is two standard errors."""
    losses = records.losses(TRAIN)
    value, size = losses.value, _block(len(losses.value))
    if len(value) < 2 * NUM_STEPS or not np.isfinite(value).all():
        return Verdict(0)
    # The first step alone where what follows is higher: a start that explodes is nothing to fall from.
    first, last = float(min(value[0], value[:size].mean())), float(value[-size:].mean())
    chance = 200 * math.sqrt(2 / size) * float(value[-size:].std()) / first
    fell = 100 * (first - last) / first
    needed = max(required_fall(int(losses.step[-1] - losses.step[0]) + 1), chance)
    if fell >= needed or _rises(value):
        return Verdict(len(value))
    return Verdict(
        len(value),
        1,
        Finding(
            rule="loss_not_decreasing",
            seen=f"the training loss went from {first:.4g} to {last:.4g} in {len(value)} steps: {fell:.2f} % less, "
            f"where {needed:.2f} % are the least",
            why="a model whose loss stays where it began learns nothing",
            change=f"optim.lr={10 * records.facts.learning_rate:g}",
            key="optim.lr",
            since_step=int(losses.global_step[0]),
        ),
    )


def required_fall(steps: int) -> float:
    """By how many percent the loss must have fallen after so many steps."""
    return min(DIFF_PERCENT * steps / NUM_STEPS, DIFF_PERCENT_IN_ALL)


def loss_increasing(records: Records) -> Verdict:
    """The loss of the last tenth of the run against the lowest tenth."""
    losses = records.losses(TRAIN)
    value = losses.value
    if len(value) < 2 * NUM_STEPS or not np.isfinite(value).all():
        return Verdict(0)
    if not _rises(value):
        return Verdict(len(value))
    size = _block(len(value))
    means = _block_means(value)
    lowest = int(means.argmin())
    last = float(value[-size:].mean())
    return Verdict(
        len(value),
        int(np.count_nonzero(value > value[0] * (1 + INCREASE_PERCENT / 100))),
        Finding(
            rule="loss_increasing",
            seen=f"the training loss rose from {means[lowest]:.4g} to {last:.4g}, by more than {INCREASE_PERCENT:g} % "
            f"of the {value[0]:.4g} it began with",
            why="steps that overshoot leave a model worse than they found it",
            change=f"optim.lr={records.facts.learning_rate / 10:g}, or let `python tune.py` find the rate; "
            "where no rate helps, another model.backbone",
            key="optim.lr",
            since_step=int(losses.global_step[lowest * size]),
        ),
    )


def noisy_loss(records: Records) -> Verdict:
    """How far the loss jumps from one step to the next, as a share of its height, while there is much left to learn.

    Later it says little: a loss near zero is all noise. Nor at first: who guesses is as wrong on any photo.
    """
    losses = records.losses(TRAIN)
    value = losses.value
    if not len(value) or not np.isfinite(value).all():
        return Verdict(0)
    heights, noise = relative_noise(value)
    learning = np.flatnonzero(heights > LEARNT * value[0])
    judged = learning[len(learning) // 2 :]
    if len(learning) < NOISE_WINDOWS:
        return Verdict(0)
    typical = float(np.median(noise[judged]))
    if typical <= NOISE:
        return Verdict(len(value))
    batch = records.facts.batch_size
    enough = batch * 2 ** math.ceil(2 * math.log2(2 * typical / NOISE))
    return Verdict(
        len(value),
        int(np.count_nonzero(noise[judged] > NOISE)),
        Finding(
            rule="noisy_loss",
            seen=f"the training loss jumps by {typical:.0%} of its height from step to step, with batches of {batch}; "
            f"up to {NOISE:.0%} is usual",
            why="the gradient of such a step is mostly noise: steps undo each other, and the curve tells little",
            change=f"data.batch_size={enough}",
            key="data.batch_size",
            gain=f"noise falls with the square root of the batch: {typical * math.sqrt(batch / enough):.0%} instead of "
            f"{typical:.0%}, in {enough // batch} times fewer steps",
            since_step=int(losses.global_step[judged[noise[judged] > NOISE][0] * NOISE_WINDOW]),
        ),
    )


def relative_noise(value: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each window: mean of the loss, and its standard deviation about its trend over that mean; [windows] both.

    Differences of neighbours leave out the trend (von Neumann 1941); their variance is twice that of the values.
    """
    windows = value[: len(value) // NOISE_WINDOW * NOISE_WINDOW].reshape(-1, NOISE_WINDOW)
    heights = windows.mean(axis=1)
    spread = np.sqrt(np.mean(np.diff(windows, axis=1) ** 2, axis=1) / 2)
    return heights, spread / np.maximum(heights, np.finfo(np.float64).tiny)


def _not_finite(records: Records) -> list[tuple[int, str]]:
    """(Optimiser steps taken before, what) of each value that is not finite."""
    places = []
    for mode, what in ((TRAIN, "the training loss"), (EVAL, "the validation loss")):
        losses = records.losses(mode)
        places += [(int(step), what) for step in losses.global_step[~np.isfinite(losses.value)]]
    layers = records.table("layers")
    for column, what in (("gradient_norm", "the gradient"), ("weight_std", "a weight")):
        bad = ~np.isfinite(layers[column])
        places += [
            (int(s), f"{what} of {name}") for s, name in zip(layers["step"][bad], layers["layer"][bad], strict=True)
        ]
    return places


def _rises(value: NDArray[np.float64]) -> bool:
    """Whether the last tenth is above the lowest one by more than the threshold and by more than chance."""
    size = _block(len(value))
    lowest = value[_lowest(value) :][:size]
    last = value[-size:]
    rise = last.mean() - lowest.mean()
    chance = 3 * math.sqrt((last.var() + lowest.var()) / size)
    return bool(rise > max(INCREASE_PERCENT / 100 * value[0], chance))


def _lowest(value: NDArray[np.float64]) -> int:
    return int(_block_means(value).argmin()) * _block(len(value))


def _block_means(value: NDArray[np.float64]) -> NDArray[np.float64]:
    size = _block(len(value))
    means: NDArray[np.float64] = value[: len(value) // size * size].reshape(-1, size).mean(axis=1)
    return means


def _block(count: int) -> int:
    return max(NUM_STEPS, count // BLOCKS)


RULES = (
    Rule(
        "nan_or_inf",
        "losses, gradients and weights are finite numbers",
        nan_or_inf,
        {},
        f"ExplodingTensor of {SAGEMAKER}",
    ),
    Rule(
        "loss_increasing",
        "the training loss does not rise",
        loss_increasing,
        {"increase_percent": INCREASE_PERCENT},
        f"LossNotDecreasing.increase_threshold_percent of {SAGEMAKER}, of the loss at the start",
    ),
    Rule(
        "loss_not_decreasing",
        "the training loss falls",
        loss_not_decreasing,
        {"num_steps": NUM_STEPS, "diff_percent": DIFF_PERCENT, "diff_percent_in_all": DIFF_PERCENT_IN_ALL},
        f"LossNotDecreasing of {SAGEMAKER}",
    ),
    Rule(
        "noisy_loss",
        "the training loss changes little from one step to the next",
        noisy_loss,
        {"noise": NOISE, "learnt": LEARNT},
        "von Neumann 1941 for the measure; the threshold is measured (docs/decisions/0011)",
    ),
)
