"""What an epoch takes, and what it would take with cached features: from a run's own timings. Pure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graft.profiler.records import PHASES, STEP_PHASES, Column, Records

# Of a head's backward pass, what its forward pass takes: one product of matrices for each layer against two, but one
# for the first layer, whose input wants no gradient.
HEAD_FORWARD = 0.5

Steps = dict[str, Column]


def epochs_seen(records: Records) -> float:
    """Epochs that the recorded steps make."""
    return len(records.step_seconds) / records.facts.steps_per_epoch


def epoch_seconds(records: Records) -> float:
    """Seconds of an epoch: its steps, its validation, its checkpoint. NaN where no step was recorded.

    Medians, so that neither the first step, which sets everything up, nor a rare slow one counts.
    """
    return _epoch(records, lambda steps: sum_of(steps, PHASES), lambda steps: sum_of(steps, (*STEP_PHASES, "other")))


def cached_epoch_seconds(records: Records) -> float:
    """Seconds of an epoch if the backbone's features were read, not computed: as rehearsed, or else as guessed.

    The guess, for a run that was killed or too short to rehearse anything, is what it spent on the head alone; that is
    several times too much where the backbone's passes slow the head's. Reading a batch of features and moving it
    takes microseconds and counts as nothing.
    """
    if records.facts.cached_epoch_s is not None:
        return records.facts.cached_epoch_s
    gone = ("data_wait", "transfer", "forward", "evaluation_wait", "evaluation_forward")
    left = tuple(phase for phase in PHASES if phase not in gone)
    photos = records.facts.photos
    # Validation passes the head forward alone.
    valid_share = photos.get("valid", 0) / max(photos.get("train", 0), 1) * records.facts.steps_per_epoch

    def with_head(steps: Steps, phases: tuple[str, ...]) -> Column:
        return sum_of(steps, phases) + HEAD_FORWARD * steps["backward"]

    return _epoch(
        records,
        lambda steps: with_head(steps, left) + valid_share * HEAD_FORWARD * np.median(records.steps["backward"]),
        lambda steps: with_head(steps, ("backward", "optimiser", "other")),
    )


def sum_of(steps: Steps, phases: tuple[str, ...]) -> Column:
    """Seconds of some phases together, float64 [S]."""
    total: Column = np.sum([steps[phase] for phase in phases], axis=0)
    return total


def _epoch(records: Records, whole: Callable[[Steps], Column], step: Callable[[Steps], Column]) -> float:
    """Seconds of an epoch: all steps but the last as `step` counts them, and the last, which has all that ends it."""
    steps = dict(records.steps)
    if not steps or not len(steps["seconds"]):
        return float("nan")
    ends = steps["evaluation"] > 0
    ordinary = {name: values[~ends] for name, values in steps.items()} if not ends.all() else steps
    last = {name: values[ends] for name, values in steps.items()} if ends.any() else steps
    count = records.facts.steps_per_epoch
    return float((count - 1) * np.median(step(ordinary)) + np.median(whole(last)))
