"""Records of the debugger made by hand, for tests of its rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graft.debugger.records import EVAL, LOSS, TABLES, TRAIN, Facts, Records

EPOCH = 10  # training steps
FACTS = Facts(num_classes=4, batch_size=8, steps_per_epoch=EPOCH, learning_rate=0.01)


def recorded(
    train: Sequence[float] = (),
    valid: Sequence[float] = (),
    *,
    layers: Sequence[dict[str, Any]] = (),
    relus: Sequence[dict[str, Any]] = (),
    answers: Sequence[dict[str, Any]] = (),
    labels: Sequence[int] = (),
    facts: Facts = FACTS,
) -> Records:
    """A run with these losses: of each training step, and of an evaluation of one batch after each epoch.

    `layers`, `relus` and `answers` are rows, of which only the columns that matter need be given; `labels` is how
    often training has shown each class.
    """
    losses = [{"mode": TRAIN, "step": step, "global_step": step, "value": loss} for step, loss in enumerate(train)]
    losses += [
        {"mode": EVAL, "step": number, "global_step": (number + 1) * facts.steps_per_epoch, "value": loss}
        for number, loss in enumerate(valid)
    ]
    counts = [{"step": 0, "label": label, "count": count} for label, count in enumerate(labels) if count]
    rows = {"losses": losses, "layers": layers, "relus": relus, "answers": answers, "labels": counts}
    return Records(facts, {name: columns(name, found) for name, found in rows.items() if found})


def columns(table: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Columns of a table from rows."""
    usual: dict[str, Any] = {"name": LOSS, "photos": FACTS.batch_size, "mode": EVAL, "layer": "head.0"}
    return {
        name: np.array([row.get(name, usual.get(name, 0)) for row in rows], None if dtype == "U" else dtype)
        for name, dtype in TABLES[table].items()
    }


def answered(count: int, *, wrong: int = 0, suspected: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Answers to photos of two classes: right ones with 0.8, honest mistakes, and claims against the label."""
    more = {"global_step": EPOCH, **more}
    right = {"label": 0, "guess": 0, "p_label": 0.8, "p_guess": 0.8, **more}
    mistake = {"label": 0, "guess": 1, "p_label": 0.4, "p_guess": 0.5, **more}
    claim = {"label": 0, "guess": 1, "p_label": 0.01, "p_guess": 0.9, **more}
    return [right] * (count - wrong - suspected) + [mistake] * wrong + [claim] * suspected
