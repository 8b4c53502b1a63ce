"""Rules over the validation loss: whether training went on after it had stopped to help."""

from __future__ import annotations

import numpy as np

from graft.debugger.loss_rules import SAGEMAKER
from graft.debugger.records import TRAIN, Records
from graft.debugger.rule import Rule, Verdict
from graft.diagnosis import Finding

RATIO = 0.1  # Overfit.ratio_threshold
OVERFIT_PATIENCE = 1  # Overfit.patience
DELTA = 0.01  # Overtraining.delta
PATIENCE = 5  # Overtraining.patience_train; as trainer.patience is unless it is changed


def overfit(records: Records) -> Verdict:
    """The validation loss rises from its lowest while the training loss goes on falling."""
    steps, value = records.evaluations()
    if len(value) < 2 or not np.isfinite(value).all():
        return Verdict(0)
    best = int(value.argmin())
    above = value > (1 + RATIO) * value[best]
    above[:best] = False
    run = len(value) - 1 - int(np.flatnonzero(~above)[-1])  # of evaluations at the end, one after another
    fell = _train_loss_at(records, int(steps[best])) - _train_loss_at(records, int(steps[-1]))
    if run <= OVERFIT_PATIENCE or not fell > 0:
        return Verdict(len(value), run if fell > 0 else 0)
    return Verdict(
        len(value),
        run,
        Finding(
            rule="overfit",
            seen=f"the validation loss rose from {value[best]:.4g} to {value[-1]:.4g} "
            f"({value[-1] / value[best] - 1:.0%}) while the training loss fell by {fell:.4g}",
            why="what the model still learns is about these photos alone: on others it is more and more wrong, "
            "and too sure of it",
            change="optim.label_smoothing=0.1, features.views=4 (or data.augment where images are trained on), "
            "or fewer trainer.max_epochs",
            key="optim.label_smoothing",
            gain=f"the model of step {steps[best]} is kept; the {steps[-1] - steps[best]} steps after it "
            f"({(steps[-1] - steps[best]) / steps[-1]:.0%} of all) gained nothing",
            since_step=int(steps[len(value) - run]),
        ),
    )


def overtraining(records: Records) -> Verdict:
    """More evaluations without a gain than patience allows."""
    steps, value = records.evaluations()
    if not len(value) or not np.isfinite(value).all():
        return Verdict(0)
    last = last_gain(value)
    wasted = len(value) - 1 - last
    if wasted <= PATIENCE:
        return Verdict(len(value))
    share = (steps[-1] - steps[last]) / steps[-1]
    epochs = last + 1
    return Verdict(
        len(value),
        wasted,
        Finding(
            rule="overtraining",
            seen=f"the validation loss did not fall by {DELTA:g} after step {steps[last]}, where it was "
            f"{value[last]:.4g}; {wasted} evaluations came after it",
            why="time that buys nothing",
            change=f"trainer.max_epochs={epochs}, or a lower trainer.patience",
            key="trainer.max_epochs",
            gain=f"{steps[-1] - steps[last]} of {steps[-1]} steps less: {share:.0%} of the training",
            since_step=int(steps[last]),
        ),
    )


def last_gain(value: np.ndarray[tuple[int], np.dtype[np.float64]]) -> int:
    """Index of the last evaluation that was lower than every earlier gain by more than `DELTA`."""
    best, at = float(value[0]), 0
    for index, loss in enumerate(value):
        if loss < best - DELTA:
            best, at = float(loss), index
    return at


def _train_loss_at(records: Records, step: int) -> float:
    """Mean training loss over the epoch that ended with a step."""
    losses = records.losses(TRAIN)
    epoch = (losses.global_step < step) & (losses.global_step >= step - records.facts.steps_per_epoch)
    return float(losses.value[epoch].mean()) if epoch.any() else float("nan")


RULES = (
    Rule(
        "overfit",
        "the validation loss does not rise while the training loss falls",
        overfit,
        {"ratio_threshold": RATIO, "patience": OVERFIT_PATIENCE},
        f"Overfit of {SAGEMAKER}, of the rise from the lowest validation loss",
    ),
    Rule(
        "overtraining",
        "training ends when the validation loss no longer falls",
        overtraining,
        {"patience": PATIENCE, "delta": DELTA},
        f"Overtraining of {SAGEMAKER}, in evaluations",
    ),
)
