"""A trial: what is to be run, how it ended, and both together as the study has them. Plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from graft.search.space import Params

Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Point:
    """A trial after `step` optimiser steps.

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
class Outcome:
    """How a trial ended.

    Attributes:
        state: ok, pruned, failed or diverged.
        value: of the objective; of a pruned trial, the best it reached; None where there is none.
        reason: why it is not ok; empty where it is.
        seconds: it took; trials that trained together share their time evenly.
        curve: (optimiser step, valid/loss), ascending.
        steps: optimiser steps it trained.
    """

    state: str
    value: float | None
    reason: str = ""
    seconds: float = 0.0
    curve: Curve = ()
    steps: int = 0


@dataclass(frozen=True)
class Trial:
    """A trial that this process has to run."""

    number: int
    params: Params


@dataclass(frozen=True)
class Record:
    """A trial as the study has it; `outcome` is None while it runs."""

    number: int
    params: Params
    outcome: Outcome | None

    @property
    def curve(self) -> Curve:
        """Of the outcome; empty while it runs."""
        return self.outcome.curve if self.outcome else ()


def ok_values(records: Iterable[Record]) -> dict[int, float]:
    """Number -> objective of the trials that ended well."""
    return {
        record.number: record.outcome.value
        for record in records
        if record.outcome is not None and record.outcome.state == "ok" and record.outcome.value is not None
    }


def to_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain JSON values; JSON knows no infinity."""
    content = asdict(outcome)
    content["curve"] = [[step, value if math.isfinite(value) else None] for step, value in outcome.curve]
    return content


def from_json(content: dict[str, Any]) -> Outcome:
    """What `to_json` wrote."""
    curve = tuple((int(step), math.inf if value is None else float(value)) for step, value in content["curve"])
    return Outcome(**{**content, "curve": curve})
