"""What the page shows of a search: plain values for the template, and its figures drawn."""

from __future__ import annotations

from dataclasses import dataclass

from graft.report import search_charts
from graft.report.sections import Figure, drawn
from graft.report.trials import SearchFiles, Trial

MOST_ROWS = 300  # of the trial table; study.json has them all


@dataclass(frozen=True)
class SearchView:
    """Everything that the template shows of a search; figures are None where there is nothing to draw."""

    files: SearchFiles
    going_on: str
    rows: list[Trial]
    left_out: int
    history: Figure | None
    parallel: Figure | None
    importance: Figure | None
    curves: Figure | None


def view_search(files: SearchFiles) -> SearchView:
    """The sections of a search, its figures drawn."""
    rows = ordered(files)
    return SearchView(
        files=files,
        going_on=going_on(files),
        rows=rows[:MOST_ROWS],
        left_out=max(0, len(rows) - MOST_ROWS),
        history=history_figure(files),
        parallel=parallel_figure(files),
        importance=importance_figure(files),
        curves=curves_figure(files),
    )


def going_on(files: SearchFiles) -> str:
    """How far a search is; empty of one that came to its end, and where a damaged file leaves that open."""
    if files.finished or files.damaged:
        return ""
    the_same = "The same command with the same run_dir goes on."
    if files.to_come == 0 and files.best is None:
        return f"All {len(files.trials)} trials of this search have ended, and none of them well: see their reasons."
    if files.to_come == 0:
        return f"The trials of this search have ended; what it says of them is still to come. {the_same}"
    known = f": {files.to_come} trials are still to come" if files.to_come else ""
    return f"This search is not finished{known}; what stands here is what it has so far. {the_same}"


def without_model(files: SearchFiles) -> str:
    """Why there is no run in best/."""
    if files.finished or files.damaged:
        return "there is no model in best/ of this search"
    if files.to_come == 0 and files.best is None:
        return f"none of the {len(files.trials)} trials of this search ended well, so it has no model"
    return "this search has no model yet"


def ordered(files: SearchFiles) -> list[Trial]:
    """The best trial first, those without a value last."""
    sign = -1.0 if files.maximize else 1.0
    ok = sorted(files.ok, key=lambda trial: (sign * (trial.value or 0.0), trial.number))
    return [*ok, *(trial for trial in files.trials if trial not in ok)]


def parallel_figure(files: SearchFiles) -> Figure | None:
    """Parameters and objective of the trials."""
    best_first = [trial for trial in ordered(files) if trial in files.ok]
    if not best_first:
        return None
    spec = search_charts.parallel_chart(
        best_first, files.keys, files.best, files.objective or "objective", files.logarithmic
    )
    words = f"Parallel coordinates: {len(best_first)} trials over {', '.join(files.keys)}; best: {files.best}."
    return drawn(spec, words)


def history_figure(files: SearchFiles) -> Figure | None:
    """How the search went; None also where the objective, and so which way is better, is not known."""
    if not files.ok or not files.objective:
        return None
    spec = search_charts.history_chart(files.ok, files.objective, maximize=files.maximize)
    return drawn(spec, f"History: the objective of {len(files.ok)} trials by their number; best: {files.best}.")


def importance_figure(files: SearchFiles) -> Figure | None:
    """Which keys mattered."""
    if not files.importances:
        return None
    shares = ", ".join(f"{row['key']} {row['share']:.2f}" for row in files.importances)
    doubt = "" if files.importances_say else ": too few trials to say"
    return drawn(search_charts.importance_chart(files.importances), f"Importance of the keys: {shares}{doubt}.")


def curves_figure(files: SearchFiles) -> Figure | None:
    """valid/loss of the trials by step."""
    spec = search_charts.curves_chart(ordered(files), files.best)
    return None if spec is None else drawn(spec, f"Learning curves of {len(files.trials)} trials.")
