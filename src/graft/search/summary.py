"""What a search says at its end: one sentence for each thing it found. The sentences are pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from graft.config import OBJECTIVES
from graft.search.advice import Epochs, Gain, Skew
from graft.search.board import in_words
from graft.search.importance import FEWEST, Importance, says_something
from graft.search.retrain import Retrained
from graft.search.search import SearchResult
from graft.search.trials import Record, ok_values

STATES = ("ok", "pruned", "diverged", "failed")
REASONS = 5  # trials named with what went wrong; study.json has them all


def print_summary(result: SearchResult, report: Path | None) -> None:
    """Best, worst and default trial in a table, the sentences below it, and where the page is."""
    toy = ", toy figures" if result.retrained.toy else ""
    table = Table(title=f"search {result.run_dir}{toy}", title_justify="left")
    for column in ("", "trial", "parameters", result.objective):
        table.add_column(column, justify="right" if column == result.objective else "left", overflow="fold")
    for name, number, value in landmarks(result.records, result.best, result.objective):
        table.add_row(name, str(number), in_words(result.records[number].params), f"{value:.4f}")
    out = Console()
    out.print(table)
    for sentence in sentences(result):
        out.print(sentence, highlight=False, soft_wrap=True, markup=False)
    if report:
        out.print(f"report: {report}", highlight=False, soft_wrap=True, markup=False)
    out.print(f"next: python train.py overrides_from={result.run_dir}/best.yaml", highlight=False, soft_wrap=True)


def landmarks(records: Sequence[Record], best: int, objective: str) -> Iterator[tuple[str, int, float]]:
    """Name, number and value of the best trial, the default and the worst that ended well."""
    values = ok_values(records)
    yield "best", best, values[best]
    if best and 0 in values:
        yield "default", 0, values[0]
    worst = (min if OBJECTIVES[objective] else max)(values, key=lambda number: values[number])
    if worst not in (0, best):
        yield "worst", worst, values[worst]


def sentences(result: SearchResult) -> Iterator[str]:
    """Everything a search has to say, a line each."""
    yield trials_in_words(result.records)
    yield from troubles(result.records)
    if result.left:
        yield left_in_words(result.left)
    yield gain_in_words(result.gain, result.best, result.objective, same_views=result.same_views)
    yield importance_in_words(result.importances)
    if result.epochs:
        yield epochs_in_words(result.epochs)
    if result.skew:
        yield skew_in_words(result.skew)
    yield retrained_in_words(result.retrained, result.objective)
    yield from (f"data: {remark}" for remark in result.retrained.remarks)
    yield f"time: {result.seconds:.1f} s"
    yield f"files: {result.run_dir}/study.json, trials.csv, plots/; the model: {result.retrained.run_dir}/bundle"


def trials_in_words(records: Sequence[Record]) -> str:
    """How many trials ended how."""
    counts = Counter(record.outcome.state for record in records if record.outcome)
    return f"trials: {len(records)}, " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def troubles(records: Sequence[Record]) -> Iterator[str]:
    """The trials that failed or diverged, with their reasons."""
    found = [r for r in records if r.outcome is not None and r.outcome.state in ("failed", "diverged")]
    for record in found[:REASONS]:
        assert record.outcome is not None
        yield f"  trial {record.number} {record.outcome.state} ({in_words(record.params)}): {record.outcome.reason}"
    if len(found) > REASONS:
        yield f"  and {len(found) - REASONS} more, all in study.json"


def left_in_words(left: int) -> str:
    """What the time of a search was too short for."""
    return (
        f"left: {left} trials, for which there was no time (search.max_minutes; in a job also budget.usd, "
        "launcher.max_hours); the same command with more goes on with them"
    )


def gain_in_words(gain: Gain | None, best: int, objective: str, *, same_views: bool = False) -> str:
    """What the search was worth, and what its interval leaves out."""
    if best == 0:
        return "gain: none, the default configuration is the best of these trials"
    if gain is None:
        return "gain: best against default was not measured over seeds; search.repeats=5 measures it"
    views = " on the same augmented views" if same_views else ""
    figures = f"{gain.mean:+.4f} (95 % {gain.low:+.4f} .. {gain.high:+.4f}, {gain.seeds} other seeds{views})"
    verdict = "" if gain.is_sure else ": no more than seeds make"
    return f"gain: best over default in {objective} {figures}{verdict}; on the photos that chose it"


def importance_in_words(found: Sequence[Importance]) -> str:
    """What mattered."""
    if not found:
        return f"importance: too few trials to say (it takes {FEWEST} that ended well, and two keys)"
    shares = ", ".join(f"{i.key} {i.share:.2f} ({i.low:.2f} .. {i.high:.2f})" for i in found)
    return f"importance: {shares}{'' if says_something(found) else ': too few trials to say'}"


def epochs_in_words(epochs: Epochs) -> str:
    """When training stopped paying."""
    noise = "two standard deviations over seeds" if epochs.from_seeds else "1 % of its fall"
    return (
        f"epochs: the best trial gained nothing after step {epochs.step} of {epochs.last} (beyond {epochs.noise:.4f}, "
        f"{noise}); {epochs.wasted:.0%} of what the search trained (in photos) came after such a point"
    )


def skew_in_words(skew: Skew) -> str:
    """What epochs did to the comparison."""
    return (
        f"skew: the number of epochs explains {skew.share:.0%} of the variance between {skew.trials} trials; "
        "what it explains, the other keys do not"
    )


def retrained_in_words(retrained: Retrained, objective: str) -> str:
    """Whether the best trial came out as well again."""
    figures = f"{objective} {retrained.value:.4f} against the trial's {retrained.trial_value:.4f}"
    if retrained.kept == "trial":
        by = "" if retrained.noise is None else f" by more than seeds make ({retrained.noise:.4f})"
        return f"retrained: {figures}: worse{by}, so the trial's model is kept"
    test = f"; test accuracy {retrained.metrics['test/accuracy']:.4f}" if "test/accuracy" in retrained.metrics else ""
    return f"retrained: {figures}{test}"
