"""What becomes of one head that trains among others: its trial, its learning curve, and when it ends. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

TOO_HIGH = 3.0  # times its first value: a loss that stays above it has diverged

State = Literal["running", "ok", "pruned", "diverged", "failed"]
Decision = Literal["continue", "prune"]


@dataclass(frozen=True)
class HeadTrial:
    """One trial on cached features; the values mean what they do in the configuration.

    Attributes:
        number: of the trial.
        lr: learning rate.
        weight_decay: of the optimiser.
        batch_size: photos per optimiser step.
        max_epochs: number of epochs.
        max_steps: optimiser steps; -1 for no limit.
        patience: epochs without a lower valid/loss before it stops; None for never.
        seed: of initialisation and order.
        hidden: width of the hidden layer.
        algorithm: adam or adamw.
        schedule: constant or cosine.
        label_smoothing: in 0..1.
        clip_norm: longest gradient of the head; None for any.
        balance: none, sampler or loss.
    """

    number: int
    lr: float
    weight_decay: float
    batch_size: int
    max_epochs: int
    max_steps: int
    patience: int | None
    seed: int
    hidden: int
    algorithm: str
    schedule: str
    label_smoothing: float
    clip_norm: float | None
    balance: str


@dataclass(frozen=True)
class Point:
    """A head after `step` optimiser steps.

    Attributes:
        step: optimiser steps so far.
        epoch: whole epochs so far.
        ends_epoch: whether an epoch ends here, or the steps that the trial may take.
        train_loss: mean of the training loss over the steps of this epoch so far.
        valid_loss: plain cross-entropy on valid.
        valid_accuracy: in 0..1.
    """

    step: int
    epoch: int
    ends_epoch: bool
    train_loss: float
    valid_loss: float
    valid_accuracy: float


@dataclass(frozen=True)
class Progress:
    """What is reported of a head: a point of its curve, or with a `state` other than running, its end.

    Attributes:
        number: of the trial.
        state: running, ok, pruned, diverged or failed.
        reason: why it is neither running nor ok; else empty.
        point: where it is; None where it failed before its first.
        best: the epoch end with the lowest valid/loss so far; None before the first.
        seconds: its share of the time so far.
    """

    number: int
    state: State
    reason: str
    point: Point | None
    best: Point | None
    seconds: float


Report = Callable[[Progress], Decision]


@dataclass(frozen=True)
class HeadResult:
    """How a trial ended.

    Attributes:
        number: of the trial.
        state: ok, pruned, diverged or failed.
        reason: why it is not ok; empty where it is.
        best: the epoch end with the lowest valid/loss, which `train()` would keep; None where no epoch ended.
        curve: all points, by step.
        seconds: its share of the time: those of all trials add up to what the training took.
        weights: state of `build_head`'s module at `best`, where it was asked for.
    """

    number: int
    state: State
    reason: str
    best: Point | None
    curve: tuple[Point, ...]
    seconds: float
    weights: dict[str, torch.Tensor] | None

    @property
    def value(self) -> float:
        """The lowest valid/loss at the end of an epoch; NaN where none ended."""
        return self.best.valid_loss if self.best else math.nan


class Course:
    """A head from its first step to its end.

    Attributes:
        trial: what trains.
        curve: its points so far.
        best: the epoch end with the lowest valid/loss so far.
        state: running until it ends.
        reason: why it ended, where it is not ok.
        seconds: its share of the time so far.
        weights: the head's at `best`, where they are kept.
    """

    def __init__(self, trial: HeadTrial) -> None:
        self.trial = trial
        self.seconds = 0.0
        self.start_again()

    def start_again(self) -> None:
        """Nothing has been learnt yet."""
        self.curve: list[Point] = []
        self.best: Point | None = None
        self.state: State = "running"
        self.reason = ""
        self.weights: dict[str, torch.Tensor] | None = None
        self._waited = 0

    def ends_at(self, step: int, steps_per_epoch: int) -> bool:
        """Whether an epoch ends at a step, or the trial's steps do: there `train()` validates."""
        return step % steps_per_epoch == 0 or step == self.trial.max_steps

    def add(self, point: Point, first_loss: float) -> bool:
        """Take a point in; whether it is the best so far. What ends the head here sets its state.

        Args:
            point: the next one.
            first_loss: training loss of the first step, before anything was learnt.
        """
        self.curve.append(point)
        better = point.ends_epoch and (self.best is None or point.valid_loss < self.best.valid_loss)
        if better:
            self.best = point
        finished = point.epoch == self.trial.max_epochs or point.step == self.trial.max_steps
        if reason := divergence(first_loss, self.curve, finished=finished):
            self.end("diverged", reason)
        elif point.ends_epoch:
            # Lightning's EarlyStopping: epochs since the last one that was lower than all before it.
            self._waited = 0 if better else self._waited + 1
            if finished or self._waited == self.trial.patience:
                self.end("ok")
        return better

    def end(self, state: State, reason: str = "") -> None:
        """It ends here."""
        self.state, self.reason = state, reason

    @property
    def progress(self) -> Progress:
        """What there is to report."""
        point = self.curve[-1] if self.curve else None
        return Progress(self.trial.number, self.state, self.reason, point, self.best, self.seconds)

    @property
    def result(self) -> HeadResult:
        """How it ended."""
        curve = tuple(self.curve)
        return HeadResult(
            self.trial.number, self.state, self.reason, self.best, curve, self.seconds, weights=self.weights
        )


def divergence(first_loss: float, curve: Sequence[Point], *, finished: bool) -> str:
    """Why a head has diverged, as a sentence; empty where it has not.

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
