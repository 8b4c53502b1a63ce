"""The files of a search, read for the report: study.json and progress.json as trials end, search.json at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.config import OBJECTIVES
from graft.report.files import Reader, read_yaml

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Trial:
    """One trial of a search.

    Attributes:
        number: from 0, the configuration as it was composed.
        params: key -> value.
        state: ok, pruned, diverged or failed.
        value: of the objective; None where there is none.
        reason: why it is not ok.
        seconds: it took.
        curve: (optimiser step, valid/loss), ascending; empty while the search goes on.
    """

    number: int
    params: dict[str, Value]
    state: str
    value: float | None
    reason: str
    seconds: float
    curve: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class SearchFiles:
    """What a search left.

    Attributes:
        path: of its directory.
        trials: in their order; those that ended.
        best: number of the best; None where none ended well yet.
        to_come: trials that have not ended; None where progress.json does not say.
        objective: what the best is best in; empty of a search that did not write its config.yaml.
        maximize: whether more of it is better.
        logarithmic: keys searched in the logarithm.
        importances: key, share, low and high, the greatest first; empty where there are too few trials to say.
        importances_say: whether the interval of the greatest is narrow enough to be read.
        epochs: step, last, wasted, noise and from_seeds of the epoch advisor; empty where there is no curve.
        sentences: what the search says at its end.
        finished: whether it came to its end, and no more trials were asked for since.
        damaged: a sentence for each file that could not be read.
    """

    path: Path
    trials: tuple[Trial, ...]
    best: int | None
    to_come: int | None
    objective: str
    maximize: bool
    logarithmic: frozenset[str]
    importances: tuple[dict[str, Any], ...]
    importances_say: bool
    epochs: dict[str, Any]
    sentences: tuple[str, ...]
    finished: bool
    damaged: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        """What was searched, in the order of the trials' parameters."""
        return list(dict.fromkeys(key for trial in self.trials for key in trial.params))

    @property
    def ok(self) -> list[Trial]:
        """The trials that ended well."""
        return [trial for trial in self.trials if trial.state == "ok" and trial.value is not None]


def is_search(path: Path) -> bool:
    """Whether a directory is that of a search, begun or finished."""
    return any((path / name).exists() for name in ("study.json", "study.journal", "search.json"))


def read_search(path: Path) -> SearchFiles:
    """All that the report shows of a search, whatever its state."""
    reader = Reader(path)
    study = reader.json("study.json")
    told, no_config = reader.json("search.json"), dict[str, Any]()
    config = reader.take("config.yaml", read_yaml, no_config)
    objective = told.get("objective") or (config.get("search") or {}).get("objective", "")
    curves, to_come = told.get("curves", {}), reader.json("progress.json").get("to_come")
    return SearchFiles(
        path=path,
        trials=tuple(_trial(row, curves.get(str(row["number"]), ())) for row in study.get("trials", ())),
        best=study.get("best"),
        to_come=to_come,
        objective=objective,
        maximize=told.get("maximize", OBJECTIVES.get(objective, False)),
        logarithmic=frozenset(told.get("logarithmic", ())),
        importances=tuple(told.get("importances", ())),
        importances_say=told.get("importances_say", True),
        epochs=told.get("epochs") or {},
        sentences=tuple(told.get("sentences", ())),
        finished=bool(told) and to_come in (None, told.get("left", 0)),
        damaged=tuple(reader.damaged),
    )


def in_words(value: Value) -> str:
    """A parameter with the digits that matter."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def heights(values: Sequence[Value], *, logarithmic: bool) -> list[float]:
    """Where each value stands between the lowest, 0, and the highest, 1; words in the order of the alphabet."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        words = sorted({str(value) for value in values})
        return [words.index(str(value)) / max(1, len(words) - 1) for value in values]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    positive = [number for number in numbers if number > 0]
    if logarithmic and positive:
        # a default of 0 stands below every value of a logarithmic range
        numbers = [math.log(max(number, min(positive) / 10)) for number in numbers]
    low, high = min(numbers), max(numbers)
    return [(number - low) / ((high - low) or 1.0) for number in numbers]


def _trial(row: dict[str, Any], curve: Sequence[tuple[int, float | None]]) -> Trial:
    points = tuple((int(step), float(loss)) for step, loss in curve if loss is not None)
    own = ("number", "params", "state", "value", "reason", "seconds")
    return Trial(**{name: row[name] for name in own}, curve=points)
