"""The figures of a search as Vega-Lite specifications: parallel coordinates, importance, learning curves. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graft.report.charts import ACCENT, FAINT, WIDTH
from graft.report.drawing import MUTED, Spec
from graft.report.trials import Trial, heights, in_words

OFF_SCALE = 1.2  # times the highest first loss of an ordinary trial: curves above it are cut
MOST_LINES = 200  # trials drawn; of more, the best
MOST_MARKS = 1000  # of a figure: a mark costs the page 250 bytes, one of parallel coordinates twice that
# The best trial stands out.
COLOUR = {"condition": {"test": "datum.best", "value": ACCENT}, "value": FAINT}
STROKE = {"condition": {"test": "datum.best", "value": 3}, "value": 1.5}


def parallel_chart(
    trials: Sequence[Trial], keys: Sequence[str], best: int | None, objective: str, logarithmic: frozenset[str]
) -> Spec:
    """A line per trial over its parameters and the objective, each scaled to its own range.

    `trials` are those that ended well, the best first; drawn are as many as there is room for.
    """
    trials = trials[: min(MOST_LINES, MOST_MARKS // (len(keys) + 1))]
    columns = {key: [trial.params.get(key) for trial in trials] for key in keys}
    columns[objective] = [trial.value for trial in trials]
    places = {name: heights(column, logarithmic=name in logarithmic) for name, column in columns.items()}
    rows = [
        {
            "trial": trial.number,
            "key": name,
            "height": places[name][at],
            "best": trial.number == best,
            "text": f"trial {trial.number}: {_words(trial, objective)}",
        }
        for at, trial in enumerate(trials)
        for name in columns
    ]
    ends = [row for name, column in columns.items() for row in _ends(name, column, places[name])]
    x = {"field": "key", "type": "nominal", "sort": [*columns], "title": None, "axis": {"labelAngle": 0}}
    y = {"field": "height", "type": "quantitative", "axis": None, "scale": {"domain": [-0.08, 1.08]}}
    words: Spec = {
        "data": {"values": ends},
        "mark": {"type": "text", "dx": 10, "align": "left", "color": MUTED, "aria": False},
        "encoding": {"text": {"field": "text"}},
    }
    layers = [*_parallel_lines(sorted(rows, key=lambda row: bool(row["best"]))), words]
    return {"width": WIDTH, "height": 320, "encoding": {"x": x, "y": y}, "layer": layers}


def _parallel_lines(rows: Sequence[Mapping[str, Any]]) -> list[Spec]:
    """A line per trial, and a dot where it meets an axis; the best is drawn last and bold."""
    text = {"field": "text"}
    return [
        {
            "data": {"values": rows},
            "mark": {"type": "line"},
            "encoding": {"detail": {"field": "trial"}, "color": COLOUR, "strokeWidth": STROKE, "description": text},
        },
        {
            "data": {"values": rows},
            "mark": {"type": "circle", "size": 60, "opacity": 1},
            "encoding": {"color": COLOUR, "description": text},
        },
    ]


def history_chart(trials: Sequence[Trial], objective: str, *, maximize: bool) -> Spec:
    """The objective of each trial that ended well by its number, and the best so far.

    Of very many, every n-th dot is drawn beside those that were the best so far.
    """
    ended = sorted((trial.number, trial.value) for trial in trials if trial.value is not None)
    best = list(itertools.accumulate((value for _, value in ended), max if maximize else min))
    stride = -(-len(ended) // MOST_MARKS)
    rows = [
        {"trial": number, "value": value, "best": so_far, "text": f"trial {number}: {objective} {in_words(value)}"}
        for at, ((number, value), so_far) in enumerate(zip(ended, best, strict=True))
        if at % stride == 0 or value == so_far
    ]
    axis = {"format": "d", "tickMinStep": 1, "labelOverlap": True}
    x = {"field": "trial", "type": "quantitative", "title": "trial", "axis": axis}
    y = {"type": "quantitative", "title": objective, "scale": {"zero": False}}
    line: Spec = {"type": "line", "interpolate": "step-after", "strokeWidth": 1.8, "color": ACCENT, "aria": False}
    dots: Spec = {"type": "circle", "size": 50, "opacity": 1, "color": MUTED}
    return {
        "width": WIDTH,
        "height": 200,
        "data": {"values": rows},
        "encoding": {"x": x},
        "layer": [
            {"mark": dots, "encoding": {"y": {**y, "field": "value"}, "description": {"field": "text"}}},
            {"mark": line, "encoding": {"y": {**y, "field": "best"}}},
        ],
    }


def importance_chart(importances: Sequence[Mapping[str, Any]]) -> Spec:
    """Shares of the keys with their 95 % intervals."""
    rows = [
        {**row, "text": f"{row['key']}: {row['share']:.2f} (95 % interval {row['low']:.2f} to {row['high']:.2f})"}
        for row in importances
    ]
    y = {"field": "key", "type": "nominal", "sort": None, "title": None}
    x = {"type": "quantitative", "scale": {"domain": [0, 1]}, "title": "share (95 % interval)"}
    return {
        "width": WIDTH - 260,
        "height": {"step": 32},
        "data": {"values": rows},
        "encoding": {"y": y},
        "layer": [
            {
                "mark": {"type": "bar", "color": FAINT, "height": 18},
                "encoding": {"x": {**x, "field": "share"}, "description": {"field": "text"}},
            },
            {
                "mark": {"type": "rule", "color": ACCENT, "strokeWidth": 2, "aria": False},
                "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}},
            },
        ],
    }


def curves_chart(trials: Sequence[Trial], best: int | None) -> Spec | None:
    """valid/loss by optimiser step of trials, the best first, as far as there is room; None where no curve is known."""
    drawn = [trial for trial in trials if trial.curve][:MOST_LINES]
    if not drawn:
        return None
    most = MOST_MARKS // len(drawn)
    firsts = sorted(trial.curve[0][1] for trial in drawn)
    highest = OFF_SCALE * max(firsts[len(firsts) // 2], min(firsts))
    rows = [
        {
            "trial": trial.number,
            "step": step,
            "loss": loss,
            "best": trial.number == best,
            "text": f"trial {trial.number} step {step}: {loss:.4f}",
        }
        for trial in sorted(drawn, key=lambda trial: trial.number == best)
        for step, loss in _evenly(trial.curve, most)
        if loss <= highest
    ]
    dots: Spec = {"type": "circle", "size": 50, "opacity": 1}
    return {
        "width": WIDTH,
        "height": 260,
        "data": {"values": rows},
        "encoding": {
            "x": {"field": "step", "type": "quantitative", "title": "optimiser step"},
            "y": {"field": "loss", "type": "quantitative", "title": "valid/loss", "scale": {"zero": False}},
            "color": COLOUR,
        },
        "layer": [
            {
                "mark": {"type": "line", "aria": False},
                "encoding": {"detail": {"field": "trial"}, "strokeWidth": STROKE},
            },
            {"mark": dots, "encoding": {"description": {"field": "text"}}},
        ],
    }


def _evenly(curve: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most so many points of a curve, its ends among them."""
    return [curve[at] for at in np.unique(np.linspace(0, len(curve) - 1, min(most, len(curve))).round().astype(int))]


def _words(trial: Trial, objective: str) -> str:
    params = ", ".join(f"{key}={in_words(value)}" for key, value in trial.params.items())
    return f"{params}: {objective} {in_words(trial.value)}"


def _ends(name: str, column: Sequence[Any], places: Sequence[float]) -> list[dict[str, Any]]:
    """What stands at each height where all can be told, else at the bottom and at the top."""
    shown = dict(sorted(zip(places, map(in_words, column), strict=True)))
    if len(shown) > 6:
        shown = {min(shown): shown[min(shown)], max(shown): shown[max(shown)]}
    return [{"key": name, "height": place, "text": text} for place, text in shown.items()]
