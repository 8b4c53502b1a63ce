"""The figures of a search as Vega-Lite specifications: parallel coordinates, importance, learning curves. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graft.report.charts import ACCENT, FAINT, WIDTH
from graft.report.drawing import MUTED, Spec
from graft.report.trials import Trial, heights, in_words

OFF_SCALE = 1.2  # times the highest first loss of an ordinary trial: curves above it are cut
MOST_LINES = 200  # trials drawn; of more, the best


def parallel_chart(
    trials: Sequence[Trial], keys: Sequence[str], best: int | None, objective: str, logarithmic: frozenset[str]
) -> Spec:
    """A line per trial that ended well over its parameters and the objective, each scaled to its own range."""
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
    colour = {"condition": {"test": "datum.best", "value": ACCENT}, "value": FAINT}
    width = {"condition": {"test": "datum.best", "value": 3}, "value": 1.5}
    dots: Spec = {"type": "circle", "size": 60, "opacity": 1}
    return {
        "width": WIDTH,
        "height": 320,
        "encoding": {"x": x, "y": y},
        "layer": [
            {
                "data": {"values": sorted(rows, key=lambda row: bool(row["best"]))},
                "mark": {"type": "line"},
                "encoding": {
                    "detail": {"field": "trial"},
                    "color": colour,
                    "strokeWidth": width,
                    "description": {"field": "text"},
                },
            },
            {
                "data": {"values": sorted(rows, key=lambda row: bool(row["best"]))},
                "mark": dots,
                "encoding": {"color": colour, "description": {"field": "text"}},
            },
            {
                "data": {"values": ends},
                "mark": {"type": "text", "dx": 10, "align": "left", "color": MUTED, "aria": False},
                "encoding": {"text": {"field": "text"}},
            },
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
    """valid/loss by optimiser step of all trials; None where no curve is known."""
    drawn = [trial for trial in trials if trial.curve]
    if not drawn:
        return None
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
        for step, loss in trial.curve
        if loss <= highest
    ]
    colour = {"condition": {"test": "datum.best", "value": ACCENT}, "value": FAINT}
    width = {"condition": {"test": "datum.best", "value": 3}, "value": 1.5}
    dots: Spec = {"type": "circle", "size": 50, "opacity": 1}
    return {
        "width": WIDTH,
        "height": 260,
        "data": {"values": rows},
        "encoding": {
            "x": {"field": "step", "type": "quantitative", "title": "optimiser step"},
            "y": {"field": "loss", "type": "quantitative", "title": "valid/loss", "scale": {"zero": False}},
            "color": colour,
        },
        "layer": [
            {
                "mark": {"type": "line", "aria": False},
                "encoding": {"detail": {"field": "trial"}, "strokeWidth": width},
            },
            {"mark": dots, "encoding": {"description": {"field": "text"}}},
        ],
    }


def _words(trial: Trial, objective: str) -> str:
    params = ", ".join(f"{key}={in_words(value)}" for key, value in trial.params.items())
    return f"{params}: {objective} {in_words(trial.value)}"


def _ends(name: str, column: Sequence[Any], places: Sequence[float]) -> list[dict[str, Any]]:
    """What stands at each height where all can be told, else at the bottom and at the top."""
    shown = dict(sorted(zip(places, map(in_words, column), strict=True)))
    if len(shown) > 6:
        shown = {min(shown): shown[min(shown)], max(shown): shown[max(shown)]}
    return [{"key": name, "height": place, "text": text} for place, text in shown.items()]
