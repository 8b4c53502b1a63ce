"""The cross-entropy of a run by step: what the debugger recorded, else what Lightning's CSV logs have."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graft.debugger.records import EVAL, TRAIN, Records, has_records, read_records

MOST_POINTS = 600  # of a drawn curve: more are not told apart on a screen, and cost 250 bytes each


@dataclass(frozen=True)
class Losses:
    """Cross-entropy of one mode.

    Attributes:
        step: of the mode, int64 [N], ascending: batches of that mode seen so far.
        global_step: optimiser steps taken by then, int64 [N].
        value: nats, float64 [N].
        recorded: by the debugger, batch by batch; else from the logs.
    """

    step: NDArray[np.int64]
    global_step: NDArray[np.int64]
    value: NDArray[np.float64]
    recorded: bool


@dataclass(frozen=True)
class Course:
    """How the cross-entropy went.

    Attributes:
        modes: by mode, TRAIN and EVAL; a mode without a point is absent.
        evaluations: optimiser steps taken -> the loss of each photo, [N]; its mean, [1], where those are not known.
    """

    modes: dict[str, Losses]
    evaluations: dict[int, NDArray[np.float64]]


def read_course(run_dir: Path) -> Course:
    """The cross-entropy of a run, as far as it came.

    Raises:
        RunError: a record of the debugger is damaged.
    """
    if not has_records(run_dir):
        return logged(run_dir)
    records = read_records(run_dir)
    found = {mode: records.losses(mode) for mode in (TRAIN, EVAL)}
    modes = {
        mode: Losses(known.step, known.global_step, known.value, recorded=True)
        for mode, known in found.items()
        if len(known.step)
    }
    if not modes:  # nothing was flushed yet
        return logged(run_dir)
    return Course(modes, _photos(records) or _means(*records.evaluations()))


def logged(run_dir: Path) -> Course:
    """What the CSV logs have: every tenth training batch, and the mean of every evaluation, at its optimiser step.

    Parts of a resumed run are joined; of steps that two parts have, the later part counts.
    """
    found: dict[str, dict[int, float]] = {TRAIN: {}, EVAL: {}}
    files = (run_dir / "logs" / "csv").glob("version_*/metrics.csv")
    for path in sorted(files, key=lambda file: file.stat().st_mtime):
        with path.open(newline="", encoding="utf-8") as file:
            for mode, step, value in _rows(file):
                found[mode][step] = value
    modes = {mode: _as_losses(points) for mode, points in found.items() if points}
    evaluated = modes.get(EVAL)
    return Course(modes, _means(evaluated.step, evaluated.value) if evaluated else {})


def thinned(losses: Losses, most: int = MOST_POINTS) -> Losses:
    """At most about `most` points that keep the curve's shape: the lowest and highest of each of most / 2 parts."""
    if len(losses.step) <= most:
        return losses
    kept: set[int] = set()
    for part in np.array_split(np.arange(len(losses.step)), most // 2):
        values = losses.value[part]
        kept |= {int(part[values.argmin()]), int(part[values.argmax()])}
    order = np.array(sorted(kept))
    return Losses(losses.step[order], losses.global_step[order], losses.value[order], losses.recorded)


def _photos(records: Records) -> dict[int, NDArray[np.float64]]:
    """The loss of each photo by evaluation, from the probabilities of the labels."""
    answers = records.table("answers")
    of_mode = answers["mode"] == EVAL
    taken, chosen = answers["global_step"][of_mode], answers["p_label"][of_mode]
    losses = -np.log(np.maximum(chosen, np.finfo(np.float64).tiny))
    return {int(step): losses[taken == step] for step in np.unique(taken)}


def _means(steps: NDArray[np.int64], means: NDArray[np.float64]) -> dict[int, NDArray[np.float64]]:
    return {int(step): np.array([mean]) for step, mean in zip(steps, means, strict=True)}


def _rows(file: Iterator[str]) -> Iterator[tuple[str, int, float]]:
    """(mode, optimiser steps taken, loss); a row that a kill tore is left out."""
    for row in csv.DictReader(file):
        for mode, column in ((TRAIN, "train/loss"), (EVAL, "valid/loss")):
            try:
                if text := row.get(column):
                    yield mode, int(row["step"]) + 1, float(text)
            except ValueError:
                continue


def _as_losses(points: dict[int, float]) -> Losses:
    steps = np.array(sorted(points), np.int64)
    return Losses(steps, steps, np.array([points[step] for step in steps.tolist()], np.float64), recorded=False)
