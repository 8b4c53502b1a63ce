"""search(config): the story of a search, from a space to the best model and what was learnt on the way."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from graft.artifacts import WITHOUT_EFFECT
from graft.config import OBJECTIVES, Config, Pruner, flatten, to_yaml
from graft.errors import ConfigError, RunError
from graft.fit import quiet_lightning
from graft.report.page import make_report
from graft.search.advice import Epochs, Gain, Skew, best_number, epoch_advice, skew
from graft.search.board import Board
from graft.search.database import told_when_lost
from graft.search.files import best_overrides, write_trials
from graft.search.importance import Importance, importances
from graft.search.joint import HeadTrials, train_together
from graft.search.plots import write_plots
from graft.search.pruning import hopeless, rungs
from graft.search.repeats import Repeats, repeat
from graft.search.retrain import Retrained, retrain
from graft.search.runs import RunTrials, Train, known_at_rungs
from graft.search.sampling import portion
from graft.search.space import Space, trial_count
from graft.search.study import Study, storage_errors
from graft.search.trials import Curve, Outcome, Record
from graft.signals import exit_when_told
from graft.storage import local_path, write_text

# They say how far a search goes and where it is kept, not what its trials are.
_OF_ITS_COURSE = ("search.trials", "search.max_minutes", "search.storage", "search.repeats", "search.study")
POLL = 0.3  # seconds between looks at trials that other processes run


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        run_dir: where it is written.
        space: what was searched.
        objective: of the trials.
        records: all trials.
        best: number of the best.
        gain: of the best over trial 0, over seeds; None where that was not measured.
        importances: of the keys; empty where there are too few trials to say.
        epochs: when training stopped paying.
        skew: what epochs explain, where they were searched.
        repeats: best and default with other seeds.
        same_views: whether those seeds trained on the same augmented views, whose share the gain's interval leaves out.
        retrained: the best configuration, trained by the ordinary way.
        left: trials for which there was no time.
        seconds: this process took.
    """

    run_dir: Path
    space: Space
    objective: str
    records: list[Record]
    best: int
    gain: Gain | None
    importances: list[Importance]
    epochs: Epochs | None
    skew: Skew | None
    repeats: Repeats
    same_views: bool
    retrained: Retrained
    left: int
    seconds: float


def search(
    config: Config, space: Space, train: Train, overrides: tuple[str, ...] = (), started: float | None = None
) -> SearchResult:
    """Run the trials that are missing, retrain the best and write what there is to know.

    Args:
        config: of trial 0; `config.search` says how to search.
        space: what is searched.
        train: the ordinary `train`.
        overrides: what the command line said, for best.yaml.
        started: `time.perf_counter()` when the program started.

    Raises:
        GraftError: something a person can mend; every trial failed.
        SystemExit: the search was told to stop; the same command goes on.
    """
    started = time.perf_counter() if started is None else started
    quiet_lightning()
    run_dir = local_path(config.run_dir, "run_dir")
    with (
        exit_when_told(),
        told_when_lost(config.search.storage),
        closing(open_study(config, space, run_dir)) as study,
        study.alive(),
    ):
        write_text(run_dir / "config.yaml", to_yaml(_without_storage(config)))
        trials = HeadTrials(config) if train_together(config, space) else RunTrials(config, run_dir, train)
        try:
            run_trials(config, space, study, trials, started)
        except BaseException:
            study.release()
            raise
        if not study.values():
            write_trials(run_dir, study.records(), None, study.unfinished())
            make_report(run_dir)
            raise _nothing_ended_well(study.records())
        # of several processes in one directory the first does it, and the others read what it wrote
        with FileLock(run_dir / "finish.lock"):
            return finish(config, space, study, trials, train, overrides, started)


def open_study(config: Config, space: Space, run_dir: Path) -> Study:
    """The study of a search, new or begun before.

    Raises:
        ConfigError: the pruner cannot judge by the objective; the storage cannot be opened.
        RunError: it holds a search with other settings.
    """
    s = config.search
    if s.pruner is not Pruner.none and not known_at_rungs(s.objective):
        raise ConfigError(f"search.pruner={s.pruner.name} judges by valid/loss or valid/accuracy, not by {s.objective}")
    return Study(
        space,
        sampler=s.sampler.name,
        trials=trial_count(config, space),
        seed=s.seed,
        maximize=OBJECTIVES[s.objective],
        journal=run_dir / "study.journal",
        storage=s.storage,
        name=s.study,
        settings=_settings(config),
    )


def run_trials(config: Config, space: Space, study: Study, trials: HeadTrials | RunTrials, started: float) -> None:
    """Claim, run and tell until no trial of the search is left, those of other processes included, or time is up."""
    s, run_dir = config.search, local_path(config.run_dir, "run_dir")
    if study.unfinished():
        trials.prepare()
    with Board(study.records, study.total, s.objective) as board:

        def at_rung(number: int, step: int, loss: float, accuracy: float) -> bool:
            try:
                study.report(number, step, accuracy if s.objective == "valid/accuracy" else loss)
                # Judged at earlier rungs again: who comes first to one is compared with those who came since.
                seen = [study.reached(rung) for rung in stops if rung <= step]
            except storage_errors():
                return True  # what it has learnt is not lost to a moment without the storage: it is asked again later
            return not any(
                hopeless(s.pruner.name, number, reached, maximize=study.maximize)
                for reached in seen
                if number in reached
            )

        def at_end(number: int, outcome: Outcome) -> None:
            study.tell(number, outcome)
            board.refresh()

        stops = () if s.pruner is Pruner.none else rungs(*trials.lengths(space))
        longest = 0.0
        while (left := study.unfinished()) and not time_is_up(s.max_minutes, time.perf_counter() - started, longest):
            began = time.perf_counter()
            together = 1
            if isinstance(trials, HeadTrials):
                together = portion(s.sampler.name, study.total, study.total - left, trials.device)
            claimed = study.claim(together)
            board.refresh()
            if claimed:
                trials.run(claimed, stops, at_rung, at_end)
                longest = max(longest, time.perf_counter() - began)
                # so that a report can be made half-way, and of a search that was killed
                values = study.values()
                best = best_number(values, maximize=study.maximize) if values else None
                write_trials(run_dir, study.records(), best, study.unfinished())
            else:
                time.sleep(POLL)


def time_is_up(minutes: float | None, seconds: float, longest: float) -> bool:
    """Whether no more trials may begin, for they would not be done in time.

    Their time is that of the longest so far, and the end of a search (other seeds, training the best again) is given
    as much; so the first ones always begin.

    Args:
        minutes: `search.max_minutes`.
        seconds: since the search began.
        longest: seconds of the trials, or of those that were trained together, that took longest; 0: none so far.
    """
    return minutes is not None and longest > 0 and seconds + 2 * longest > 60 * minutes


def finish(
    config: Config,
    space: Space,
    study: Study,
    trials: HeadTrials | RunTrials,
    train: Train,
    overrides: tuple[str, ...],
    started: float,
) -> SearchResult:
    """Repeat best and default, retrain the best, and write all that there is to know."""
    run_dir, s = local_path(config.run_dir, "run_dir"), config.search
    records, values, left = study.records(), study.values(), study.unfinished()
    best = best_number(values, maximize=study.maximize)
    write_trials(run_dir, records, best, left)
    write_text(run_dir / "best.yaml", best_overrides(overrides, records[best].params))

    repeats = repeat(config, trials, records, best, run_dir)
    retrained = retrain(
        config,
        records[best].params,
        values[best],
        repeats.noise(),
        train,
        run_dir / "best",
        lambda: trials.state(best, records[best].params),
    )
    found = importances(study.frozen(), list(space.spreads), maximize=study.maximize, seed=s.seed)
    write_plots(run_dir / "plots", space, records, best, s.objective, found)
    return SearchResult(
        run_dir=run_dir,
        space=space,
        objective=s.objective,
        records=records,
        best=best,
        gain=repeats.gain(maximize=study.maximize) if best else None,
        importances=found,
        epochs=advice_on_epochs(config, records, best, repeats),
        skew=epochs_skew(space, records, values),
        repeats=repeats,
        same_views=trials.together and config.features.views > 0,
        retrained=retrained,
        left=left,
        seconds=time.perf_counter() - started,
    )


def advice_on_epochs(config: Config, records: Sequence[Record], best: int, repeats: Repeats) -> Epochs | None:
    """When training stopped paying, by the seeds with which the best came to its end."""
    sizes = [record.params.get("data.batch_size", config.data.batch_size) for record in records]
    return epoch_advice(
        records[best].curve,
        [record.curve for record in records],
        [size if isinstance(size, int) else 0 for size in sizes],
        [lowest(outcome.curve) for outcome in repeats.best if outcome.state == "ok"],
    )


def epochs_skew(space: Space, records: Sequence[Record], values: Mapping[int, float]) -> Skew | None:
    """What epochs explain of the objective; None where they were not searched.

    Trial 0 is left out where its epochs are not of the space: the 8 that are composed would be a group of one beside
    the original's 2 to 5, and as the longest run it would set the share.
    """
    key = "trainer.max_epochs"
    if key not in space.spreads:
        return None
    inside = [number for number in values if number > 0 or space.has_default(key)]
    return skew([records[number].params[key] for number in inside], [values[number] for number in inside])


def lowest(curve: Curve) -> float:
    """The lowest loss of a curve."""
    return min((loss for _, loss in curve), default=math.inf)


def _settings(config: Config) -> dict[str, str]:
    """What must be the same for the trials of a search to compare, as text by key."""
    # trials leave test shut whatever is said of it, and the search goes on with more of them
    other = (*WITHOUT_EFFECT, "evaluate.test", *_OF_ITS_COURSE)
    values = {key: str(value) for key, value in flatten(config).items() if not key.startswith(other)}
    if config.search.storage:  # machines that share a study may keep the same photos and weights in other places
        values |= {key: Path(values[key]).name for key in ("data.root", "model.weights")}
    return values


def _without_storage(config: Config) -> Config:
    """For the record: a URL may have a password in it."""
    return replace(config, search=replace(config.search, storage=None))


def _nothing_ended_well(records: Sequence[Record]) -> RunError:
    reasons = Counter(record.outcome.reason for record in records if record.outcome)
    (reason, count), *_ = reasons.most_common(1)
    return RunError(f"none of {len(records)} trials ended well; {count} of them: {reason}")
