"""What becomes of one head that trains among others: its trial, its learning curve, and when it ends. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from graft.search.pruning import divergence
from graft.search.trials import Point

if TYPE_CHECKING:
    import torch

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
