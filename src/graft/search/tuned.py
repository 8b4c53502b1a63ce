"""A search that SageMaker ran as a tuning job: its trials in the same files, table and report as one of our own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graft.command import value_of
from graft.config import OBJECTIVES, plain
from graft.errors import RunError
from graft.launcher.trials import TunedTrial
from graft.report.page import make_report
from graft.search.advice import best_number, skew
from graft.search.board import in_words
from graft.search.files import best_overrides, write_lessons, write_trials
from graft.search.importance import Importance, importances
from graft.search.sampling import distributions
from graft.search.space import Params, Space
from graft.search.summary import importance_in_words, landmarks, skew_in_words, trials_in_words, troubles
from graft.search.trials import Outcome, Record, ok_values
from graft.storage import write_text

if TYPE_CHECKING:
    import optuna

_EPOCHS = "trainer.max_epochs"


@dataclass(frozen=True)
class TunedSearch:
    """What a tuning job came to.

    Attributes:
        run_dir: of the search.
        objective: what the best is best in.
        records: of its trials, numbered from 1: a tuning job does not try the default configuration.
        best: number of the best.
        sentences: what there is to say, a line each.
        report: the page; None where it could not be made.
    """

    run_dir: Path
    objective: str
    records: list[Record]
    best: int
    sentences: tuple[str, ...]
    report: Path | None


def write_search(
    run_dir: Path, space: Space, objective: str, trials: Sequence[TunedTrial], overrides: Sequence[str], seed: int
) -> TunedSearch:
    """Write study.json, trials.csv, best.yaml, search.json and the page.

    Args:
        run_dir: of the search.
        space: what was searched.
        objective: what the best is best in.
        trials: as SageMaker tells them.
        overrides: what the command line said.
        seed: of the resampling of importances.

    Raises:
        RunError: no trial ended well.
    """
    records = [record_of(number, trial) for number, trial in enumerate(trials, 1)]
    values = ok_values(records)
    if not values:
        write_trials(run_dir, records, None)
        reasons = "; ".join(sorted({r.outcome.reason for r in records if r.outcome and r.outcome.reason}))
        raise RunError(f"run_dir={run_dir}: none of {len(records)} trials ended well: {reasons or 'no reason told'}")
    maximize = OBJECTIVES[objective]
    best = best_number(values, maximize=maximize)
    write_trials(run_dir, records, best)
    write_text(run_dir / "best.yaml", best_overrides(overrides, records[best - 1].params))
    found = importances(list(_frozen(space, records)), list(space.spreads), maximize=maximize, seed=seed)
    sentences = tuple(_sentences(records, found))
    write_lessons(run_dir, space, objective, found, sentences)
    return TunedSearch(run_dir, objective, records, best, sentences, make_report(run_dir))


def record_of(number: int, trial: TunedTrial) -> Record:
    """A trial of SageMaker's as one of a search."""
    params: Params = {key: plain(value_of(key, text)) for key, text in trial.params.items()}
    value = trial.value if trial.value is not None and math.isfinite(trial.value) else None
    states = {"Completed": "ok" if value is not None else "diverged", "Stopped": "pruned"}
    state = states.get(trial.state, "failed")
    told = {"pruned": "stopped early, or with its tuning job", "diverged": "it told no finite value of the objective"}
    reason = trial.reason.splitlines()[0] if trial.reason else told.get(state, "")
    return Record(number, params, Outcome(state, value, reason, float(trial.billed_seconds)))


def print_tuned(search: TunedSearch) -> None:
    """Best and worst trial in a table, the sentences below it, and where the page is."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"search {search.run_dir}", title_justify="left")
    for column in ("", "trial", "parameters", search.objective):
        table.add_column(column, justify="right" if column == search.objective else "left", overflow="fold")
    for name, number, value in landmarks(search.records, search.best, search.objective):
        table.add_row(name, str(number), in_words(search.records[number - 1].params), f"{value:.4f}")
    out = Console()
    out.print(table)
    for sentence in search.sentences:
        out.print(sentence, highlight=False, soft_wrap=True, markup=False)
    if search.report:
        out.print(f"report: {search.report}", highlight=False, soft_wrap=True, markup=False)
    out.print(f"next: python train.py overrides_from={search.run_dir}/best.yaml", highlight=False, soft_wrap=True)


def _sentences(records: Sequence[Record], found: Sequence[Importance]) -> Iterator[str]:
    yield trials_in_words(records)
    yield from troubles(records)
    yield "gain: a tuning job does not try the default configuration; search.backend=one_job measures the gain over it"
    yield importance_in_words(found)
    ended = [(r.params[_EPOCHS], r.outcome.value) for r in records if _EPOCHS in r.params and r.outcome]
    of_epochs = skew(*zip(*[(e, v) for e, v in ended if v is not None], strict=True)) if len(ended) > 2 else None
    if of_epochs:
        yield skew_in_words(of_epochs)


def _frozen(space: Space, records: Sequence[Record]) -> Iterator[optuna.trial.FrozenTrial]:
    """The trials that ended well, as Optuna has them."""
    from optuna.trial import create_trial

    known = distributions(space)
    for record in records:
        if record.outcome is not None and record.outcome.state == "ok" and set(record.params) == set(known):
            yield create_trial(params=record.params, distributions=known, value=record.outcome.value)
