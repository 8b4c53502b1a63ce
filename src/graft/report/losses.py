"""The cross-entropy of a run by step: what the debugger recorded, else what Lightning's CSV logs have."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graft.debugger import records

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


def read_losses(run_dir: Path) -> dict[str, Losses]:
    """Cross-entropy by mode, TRAIN and EVAL; a mode without a point is absent.

    Raises:
        RunError: a record of the debugger is damaged.
    """
    found = records.read_losses(run_dir)
    if found:
        return {mode: Losses(at.step, at.global_step, at.value, recorded=True) for mode, at in found.items()}
    return logged(run_dir)


def logged(run_dir: Path) -> dict[str, Losses]:
    """What the CSV logs have: every tenth training batch, and the mean of every evaluation, at its optimiser step.

    Parts of a resumed run are joined; of steps that two parts have, the later part counts.
    """
    found: dict[str, dict[int, float]] = {"TRAIN": {}, "EVAL": {}}
    files = (run_dir / "logs" / "csv").glob("version_*/metrics.csv")
    for path in sorted(files, key=lambda file: file.stat().st_mtime):
        with path.open(newline="", encoding="utf-8") as file:
            for mode, step, value in _rows(file):
                found[mode][step] = value
    return {mode: _as_losses(points) for mode, points in found.items() if points}


def by_evaluation(losses: Losses) -> dict[int, list[float]]:
    """Optimiser steps taken at an evaluation -> the losses of its batches."""
    found: defaultdict[int, list[float]] = defaultdict(list)
    for step, value in zip(losses.global_step.tolist(), losses.value.tolist(), strict=True):
        found[step].append(value)
    return dict(found)


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


def _rows(file: Iterator[str]) -> Iterator[tuple[str, int, float]]:
    """(mode, optimiser steps taken, loss); a row that a kill tore is left out."""
    for row in csv.DictReader(file):
        for mode, column in (("TRAIN", "train/loss"), ("EVAL", "valid/loss")):
            try:
                if text := row.get(column):
                    yield mode, int(row["step"]) + 1, float(text)
            except ValueError:
                continue


def _as_losses(points: dict[int, float]) -> Losses:
    steps = np.array(sorted(points), np.int64)
    return Losses(steps, steps, np.array([points[step] for step in steps.tolist()], np.float64), recorded=False)
