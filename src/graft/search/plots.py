"""Figures of a search as SVG: history, parallel coordinates, importance, learning curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graft.config import OBJECTIVES
from graft.report.trials import heights
from graft.search.importance import Importance, says_something
from graft.search.space import Space
from graft.search.trials import Record, ok_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY, BLUE, RED = "0.75", "tab:blue", "tab:red"


def write_plots(
    directory: Path, space: Space, records: Sequence[Record], best: int, objective: str, found: Sequence[Importance]
) -> None:
    """Write the figures, SVG.

    Args:
        directory: made where it is not there.
        space: what was searched.
        records: all trials.
        best: number of the best.
        objective: its name.
        found: importances; empty where there are too few trials to say.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    directory.mkdir(parents=True, exist_ok=True)
    draw: dict[str, Callable[[Axes], None]] = {
        "history": lambda axes: draw_history(axes, records, best, objective),
        "parallel": lambda axes: draw_parallel(axes, space, records, best, objective),
        "importance": lambda axes: draw_importance(axes, found),
        "curves": lambda axes: draw_curves(axes, records, best),
    }
    for name, onto in draw.items():
        figure = Figure(figsize=(7, 4), layout="constrained")
        onto(figure.add_subplot())
        # the same search gives the same bytes
        with rc_context({"svg.hashsalt": "graft"}):
            figure.savefig(directory / f"{name}.svg", metadata={"Date": None})


def draw_history(axes: Axes, records: Sequence[Record], best: int, objective: str) -> None:
    """Objective by trial, and the best so far."""
    values = ok_values(records)
    pick = max if OBJECTIVES[objective] else min
    numbers = sorted(values)
    axes.plot(numbers, [values[n] for n in numbers], "o", color=GREY, label="trial")
    so_far = [pick(values[m] for m in numbers if m <= n) for n in numbers]
    axes.step(numbers, so_far, where="post", color=BLUE, label="best so far")
    axes.plot([best], [values[best]], "o", color=RED, label=f"best: trial {best}")
    axes.set(xlabel="trial", ylabel=objective, title="History")
    axes.legend()


def draw_parallel(axes: Axes, space: Space, records: Sequence[Record], best: int, objective: str) -> None:
    """A line per trial over its parameters, each scaled to its range, and the objective."""
    values = ok_values(records)
    keys = list(space.spreads)
    begun = [record for record in records if record.params]  # another process may be about to choose those of its trial
    numbers = [record.number for record in begun]
    places = {
        key: dict(
            zip(numbers, heights([r.params[key] for r in begun], logarithmic=space.spreads[key].log), strict=True)
        )
        for key in keys
    }
    low, high = min(values.values()), max(values.values())
    for number in sorted(values, key=lambda n: n == best):
        parameters = [places[key][number] for key in keys]
        share = (values[number] - low) / ((high - low) or 1.0)
        axes.plot(range(len(keys) + 1), [*parameters, share], color=RED if number == best else GREY)
    names = [f"{key}\n{ends(key, begun)}" for key in keys]
    axes.set_xticks(range(len(keys) + 1), [*names, f"{objective}\n{low:.3g} .. {high:.3g}"])
    axes.set(yticks=[], title="Parameters of the trials")


def draw_importance(axes: Axes, found: Sequence[Importance]) -> None:
    """Shares with their intervals."""
    if not found:
        axes.text(0.5, 0.5, "too few trials to say", ha="center", va="center")
        axes.set(xticks=[], yticks=[], title="Importance")
        return
    ordered = list(reversed(found))
    axes.barh([i.key for i in ordered], [i.share for i in ordered], color=BLUE)
    below, above = [max(0.0, i.share - i.low) for i in ordered], [max(0.0, i.high - i.share) for i in ordered]
    axes.errorbar([i.share for i in ordered], range(len(ordered)), xerr=[below, above], fmt="none", ecolor="black")
    note = "" if says_something(found) else ": too few trials to say"
    axes.set(xlim=(0, 1), xlabel="share (95 % interval)", title=f"Importance{note}")


def draw_curves(axes: Axes, records: Sequence[Record], best: int) -> None:
    """valid/loss by optimiser step of all trials; those that went off the scale are cut."""
    curves = {record.number: [point for point in record.curve if math.isfinite(point[1])] for record in records}
    known = [curve for curve in curves.values() if curve]
    for number in sorted(curves, key=lambda n: n == best):
        if curve := curves[number]:
            label = f"trial {best}" if number == best else None
            axes.plot(*zip(*curve, strict=True), color=RED if number == best else GREY, label=label)
    if known:
        usual, lowest = statistics.median(curve[0][1] for curve in known), min(loss for c in known for _, loss in c)
        axes.set_ylim(0, 1.2 * max(usual, lowest))
        axes.legend()
    axes.set(xlabel="optimiser step", ylabel="valid/loss", title="Learning curves")


def ends(key: str, records: Sequence[Record]) -> str:
    """Lowest and highest value of a key among trials that have it, in words."""
    values = [record.params[key] for record in records]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return ", ".join(sorted({str(value) for value in values}))
    return f"{min(numbers):.3g} .. {max(numbers):.3g}"
