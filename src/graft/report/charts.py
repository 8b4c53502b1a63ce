"""The figures of the page as Vega-Lite specifications. Pure: values in, plain dicts out.

Every mark that is worth pointing at has a `description`, which the page's script shows beside the pointer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graft.plateau import Settled
from graft.report.drawing import MUTED, Spec
from graft.report.losses import Losses, thinned
from graft.report.predictions import Bin

TITLE = "CrossEntropyLoss_output_0"  # the name that the original's users know
TRAIN, EVAL, ACCENT, FAINT = "var(--train)", "var(--eval)", "var(--accent)", "var(--faint)"
WIDTH = 860
MODES = {"TRAIN": TRAIN, "EVAL": EVAL}
MOST_SAMPLES = 200  # of utilisation by time
MOST_MARKS = 1500  # of a panel: a mark costs the page 250 bytes
MOST_CORES = 8  # told one by one; of more, their mean and the busiest


def loss_chart(losses: Mapping[str, Losses], settled: Settled | None) -> Spec:
    """Cross-entropy of both modes, each on its own axis of steps, as the original's notebook showed it."""
    layers = [_mode_layer(mode, losses[mode]) for mode in MODES if mode in losses]
    if settled is not None and settled.step < settled.last and "TRAIN" in losses:
        layers.append(_settled_layer(settled, _last_step(losses["TRAIN"])))
    shared = all(not part.recorded for part in losses.values())
    return {
        "title": TITLE,
        "width": WIDTH,
        "height": 300,
        "layer": layers,
        "resolve": {"scale": {"x": "shared" if shared else "independent"}},
    }


def calibration_chart(bins: Sequence[Bin]) -> Spec:
    """Accuracy against confidence with intervals, over how many photos have each confidence."""
    rows = [
        {
            **{"confidence": b.confidence, "accuracy": b.accuracy, "low": b.low, "high": b.high, "photos": b.photos},
            "text": f"confidence {b.confidence:.2f}: right for {b.accuracy:.0%} of {b.photos} photos "
            f"(95 % interval {b.low:.0%} to {b.high:.0%})",
        }
        for b in bins
    ]
    x = {"field": "confidence", "type": "quantitative", "scale": {"domain": [0, 1]}, "axis": {"format": "%"}}
    return {"data": {"values": rows}, "vconcat": [_reliability(x), _photos_by(x)], "spacing": 12}


def phases_chart(phases: Mapping[str, float]) -> Spec:
    """Seconds of the run by what it did, the longest on top."""
    total = sum(phases.values()) or 1.0
    rows = [
        {
            "phase": name.replace("_", " "),
            "seconds": seconds,
            "text": f"{name.replace('_', ' ')}: {seconds:.1f} s, {seconds / total:.0%}",
        }
        for name, seconds in phases.items()
        if seconds > 0
    ]
    y = {"field": "phase", "type": "nominal", "sort": "-x", "title": None}
    x = {"field": "seconds", "type": "quantitative", "title": "seconds"}
    text = {"field": "text", "type": "nominal"}
    return {
        "width": WIDTH - 360,
        "height": {"step": 26},
        "padding": {"left": 20, "top": 5, "bottom": 5, "right": 30},  # a browser's letters are wider than Vega counts
        "data": {"values": rows},
        "encoding": {"y": y, "x": x},
        "layer": [
            {
                "mark": {"type": "bar", "color": ACCENT, "height": 16},
                "encoding": {"description": text},
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 6, "color": MUTED, "aria": False},
                "encoding": {"text": text},
            },
        ],
    }


def utilisation_chart(samples: Mapping[str, NDArray[np.float64]]) -> Spec | None:
    """Utilisation over time: percentages in one panel, traffic in another; None where nothing was sampled."""
    seconds = samples.get("seconds")
    if seconds is None or not len(seconds):
        return None
    samples = told_cores(samples)
    shares = [name for name in samples if name.endswith("_percent")]
    traffic = [name for name in samples if name.endswith("_mb_s")]
    panels = [
        _panel(samples, names, title, limit)
        for names, title, limit in ((shares, "%", [0, 100]), (traffic, "MB/s", None))
        if names
    ]
    return {"vconcat": panels, "resolve": {"scale": {"color": "independent"}}} if panels else None


def told_cores(samples: Mapping[str, NDArray[np.float64]]) -> Mapping[str, NDArray[np.float64]]:
    """The same samples; of more than MOST_CORES cores, the busiest at each moment in place of each."""
    cores = [name for name in samples if re.fullmatch(r"cpu\d+_percent", name)]
    if len(cores) <= MOST_CORES:
        return samples
    busiest = np.fmax.reduce([samples[name] for name in cores])
    found: dict[str, NDArray[np.float64]] = {}
    for name, values in samples.items():
        if name == cores[0]:
            found["busiest_core_percent"] = busiest
        elif name not in cores:
            found[name] = values
    return found


def _reliability(x: Spec) -> Spec:
    """The dots with their intervals, over the diagonal where confidence is right."""
    y = {"field": "accuracy", "type": "quantitative", "scale": {"domain": [0, 1]}}
    share = {"axis": {"format": "%", "title": "share that is right"}}
    diagonal = {"values": [{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]}
    dots: Spec = {"type": "circle", "size": 90, "opacity": 1, "color": ACCENT}
    return {
        "width": 380,
        "height": 300,
        "encoding": {"x": {**x, "title": None}},
        "layer": [
            {
                "data": diagonal,
                "mark": {"type": "line", "strokeDash": [4, 4], "color": MUTED, "aria": False},
                "encoding": {"y": {**y, **share}},
            },
            {
                "mark": {"type": "rule", "color": ACCENT, "strokeWidth": 1.5, "aria": False},
                "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            {"mark": dots, "encoding": {"y": y, "description": {"field": "text"}}},
        ],
    }


def _photos_by(x: Spec) -> Spec:
    return {
        "width": 380,
        "height": 70,
        "mark": {"type": "bar", "color": FAINT, "width": 16},
        "encoding": {
            "x": {**x, "title": "calibrated confidence"},
            "y": {"field": "photos", "type": "quantitative", "title": "photos", "axis": {"tickCount": 3}},
            "description": {"field": "text"},
        },
    }


def _mode_layer(mode: str, losses: Losses) -> Spec:
    drawn = thinned(losses)
    points = zip(drawn.step.tolist(), drawn.global_step.tolist(), drawn.value.tolist(), strict=True)
    taken = "" if not losses.recorded else " ({} optimiser steps taken)"
    rows = [
        {"step": step, "loss": value, "mode": mode, "text": f"{mode} step {step}: {value:.4f}{taken.format(at)}"}
        for step, at, value in points
        if np.isfinite(value)
    ]
    colour = MODES[mode]
    side = "bottom" if mode == "TRAIN" or not losses.recorded else "top"
    axis = {"orient": side, "titleColor": colour, "grid": mode == "TRAIN", "format": "d", "tickMinStep": 1}
    title = f"{mode} step" if losses.recorded else "optimiser step"
    domain = {"domain": [0, _last_step(losses)], "nice": False}
    dot: Spec = {"type": "circle", "opacity": 0 if len(rows) > 60 else 1, "size": 50, "color": colour}
    return {
        "data": {"values": rows},
        "encoding": {
            "x": {"field": "step", "type": "quantitative", "title": title, "axis": axis, "scale": domain},
            "y": {"field": "loss", "type": "quantitative", "title": "cross-entropy (nats)", "scale": {"zero": True}},
            "color": {
                "field": "mode",
                "type": "nominal",
                "title": None,
                "scale": {"domain": [*MODES], "range": [*MODES.values()]},
            },
        },
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1.8, "aria": False}},
            {"mark": dot, "encoding": {"description": {"field": "text"}}},
        ],
    }


def _settled_layer(settled: Settled, last: int) -> Spec:
    words = f"no significant gain after step {settled.step}"
    right_half = settled.step > last / 2
    x = {"field": "step", "type": "quantitative", "scale": {"domain": [0, last], "nice": False}, "axis": None}
    label: Spec = {
        **{"type": "text", "align": "right" if right_half else "left", "dx": -6 if right_half else 6},
        **{"y": 10, "color": MUTED, "aria": False},
    }
    return {
        "data": {"values": [{"step": settled.step, "text": words}]},
        "encoding": {"x": x},
        "layer": [
            {"mark": {"type": "rule", "strokeDash": [3, 3], "color": MUTED, "aria": False}},
            {"mark": label, "encoding": {"text": {"field": "text"}}},
        ],
    }


def _last_step(losses: Losses) -> int:
    return int(losses.step[-1])


def _panel(samples: Mapping[str, NDArray[np.float64]], names: Sequence[str], title: str, limit: Any) -> Spec:
    most = min(MOST_SAMPLES, MOST_MARKS // len(names))
    stride = max(1, -(-len(samples["seconds"]) // most))
    seconds = samples["seconds"][::stride]
    rows = []
    for name in names:
        words = name.removesuffix("_percent").removesuffix("_mb_s").replace("_", " ")
        rows += [
            {"s": s, "value": v, "what": words, "text": f"{words} at {s:.1f} s: {v:.1f} {title}"}
            for s, v in zip(seconds.tolist(), samples[name][::stride].tolist(), strict=True)
            if np.isfinite(v)
        ]
    scale = {"domain": limit} if limit else {}
    return {
        "width": WIDTH,
        "height": 170,
        "data": {"values": rows},
        "encoding": {
            "x": {"field": "s", "type": "quantitative", "title": "seconds since the start"},
            "y": {"field": "value", "type": "quantitative", "title": title, "scale": scale},
            "color": {
                "field": "what",
                "type": "nominal",
                "title": None,
                "sort": None,
                "legend": {"columns": 8},  # more in a row would push the figure aside
                "scale": {"range": [f"var(--line{number})" for number in range(1, 9)]},
            },
        },
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1.5, "aria": False}},
            {"mark": {"type": "circle", "size": 50, "opacity": 0}, "encoding": {"description": {"field": "text"}}},
        ],
    }
