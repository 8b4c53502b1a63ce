"""The study: trials asked of Optuna and told to it, shared by processes, and resumed when one of them is killed.

Optuna counts trials up from 0 in every storage, so a trial of a number below `trials` belongs to the search and no
other does. A trial that a dead process left running is put back into the queue, and whoever asks next gets it with
its number and its parameters. Its end is written once: a storage refuses to finish a trial that is finished.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from graft.environment import without_passwords
from graft.errors import RunError
from graft.search.database import open_database, requeue
from graft.search.journal import open_journal
from graft.search.owners import is_running, this_process
from graft.search.sampling import distributions, numbered_sampler, suggested
from graft.search.space import Params, Space
from graft.search.trials import Outcome, Record, Trial, from_json, ok_values, to_json

if TYPE_CHECKING:
    import optuna

BEAT = 5.0  # seconds between the signs of life of a process
STALE = 60.0  # seconds without one, after which its trials are taken over; a process of this machine is looked up


class Study:
    """The trials of one search.

    Args:
        space: what is searched.
        sampler: tpe, random, grid or gp.
        trials: in all.
        seed: of the proposals.
        maximize: whether a higher objective is better.
        journal: file of the trials, where `storage` is None.
        storage: an Optuna URL.
        name: of the study in `storage`.
        settings: everything else that must be the same for trials to compare, as text by key.

    Raises:
        ConfigError: the storage cannot be opened.
        RunError: it holds a search with other settings.
    """

    def __init__(
        self,
        space: Space,
        *,
        sampler: str,
        trials: int,
        seed: int,
        maximize: bool,
        journal: Path,
        storage: str | None,
        name: str,
        settings: Mapping[str, str],
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.total, self.maximize = space, trials, maximize
        self._distributions = distributions(space)
        self._storage: Any = open_journal(journal) if storage is None else open_database(storage)
        self._study = optuna.create_study(
            storage=self._storage,
            sampler=numbered_sampler(space, sampler, seed=seed, trials=trials),
            study_name=name,
            direction="maximize" if maximize else "minimize",
            load_if_exists=True,
        )
        self._id = self._storage.get_study_id_from_name(name)
        self._refuse_other_settings(dict(settings), journal if storage is None else storage)
        self.owner = this_process()
        self._seen: dict[str, tuple[Any, float]] = {}
        # Optuna makes a trial and its owner signs it in two steps. Processes that share a journal take turns at both;
        # those that share a database may be anywhere, and have STALE seconds between the two.
        self._shares_journal = storage is None
        self._alone: AbstractContextManager[Any] = FileLock(f"{journal}.claims") if storage is None else nullcontext()

    def claim(self, count: int) -> list[Trial]:
        """Up to `count` trials that nobody runs: new ones, or those that a dead process left."""
        claimed: list[Trial] = []
        with self._alone:
            self._requeue_abandoned()
            while len(claimed) < count and (trial := self._ask()) is not None:
                claimed.append(trial)
        return claimed

    def tell(self, number: int, outcome: Outcome) -> bool:
        """Write a trial's end; False where another process has written it."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        # TPE takes a pruned trial for a bad one. A failed one it does not see: what made it fail is no loss.
        finished = {"ok": TrialState.COMPLETE, "failed": TrialState.FAIL}.get(outcome.state, TrialState.PRUNED)
        trial_id = self._trial_id(number)
        values = [outcome.value] if finished is TrialState.COMPLETE and outcome.value is not None else None
        try:
            self._storage.set_trial_user_attr(trial_id, "outcome", to_json(outcome))
            self._storage.set_trial_state_values(trial_id, finished, values)
        except UpdateFinishedTrialError:
            return False
        return True

    def report(self, number: int, step: int, value: float) -> None:
        """Write what a running trial has reached at a rung."""
        from optuna.exceptions import UpdateFinishedTrialError

        # Of a trial that another process has taken over and ended, nobody needs it any more.
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_intermediate_value(self._trial_id(number), step, value)

    def reached(self, step: int) -> dict[int, float]:
        """Number -> what trials of all processes had reached at a rung."""
        found = {trial.number: trial.intermediate_values.get(step) for trial in self._study.get_trials(deepcopy=False)}
        return {number: value for number, value in found.items() if value is not None}

    def records(self) -> list[Record]:
        """All trials of the search so far, by number."""
        return [
            Record(trial.number, self._params(trial), _outcome(trial))
            for trial in self._study.get_trials(deepcopy=False)
            if trial.number < self.total
        ]

    def values(self) -> dict[int, float]:
        """Number -> objective of the trials that ended well."""
        return ok_values(self.records())

    def unfinished(self) -> int:
        """How many trials of the search have not ended, those that nobody has begun included."""
        return self.total - sum(record.outcome is not None for record in self.records())

    def frozen(self) -> list[optuna.trial.FrozenTrial]:
        """The trials as Optuna has them, for its importances."""
        return [trial for trial in self._study.get_trials() if trial.number < self.total]

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Give signs of life meanwhile, so that no other machine takes this process's trials over."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(BEAT):
                with suppress(*storage_errors()):  # the database may be back at the next beat
                    self.sign()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def sign(self) -> None:
        """Give a sign of life."""
        self._storage.set_study_user_attr(self._id, f"alive {self.owner}", time.time())

    def close(self) -> None:
        """Close the connections to a database."""
        if engine := getattr(self._storage, "engine", None):
            self._storage.remove_session()
            engine.dispose()

    def release(self) -> None:
        """Put the trials of this process back into the queue: it is about to stop.

        Where the storage cannot be reached they are taken over as those of a process that was killed.
        """
        with suppress(*storage_errors()), self._alone:
            for trial in self._running():
                if trial.user_attrs.get("owner") == self.owner:
                    self._requeue(trial)

    def _ask(self) -> Trial | None:
        from optuna.trial import TrialState

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", _experimental())
            trial = self._study.ask()
            if trial.number >= self.total:
                # One too many, as when two processes ask for the last. It waits until `trials` is raised.
                self._storage.set_trial_state_values(self._trial_id(trial.number), TrialState.WAITING)
                return None
            trial.set_user_attr("owner", self.owner)
            given = {
                key: suggested(trial, key, self._distributions[key])
                for key in self.space.spreads
                if trial.number > 0 or self.space.has_default(key)
            }
        return Trial(trial.number, {**self.space.default, **given})

    def _requeue_abandoned(self) -> None:
        for trial in self._running():
            owner = trial.user_attrs.get("owner")
            if owner != self.owner and not self._lives(trial.number, owner):
                self._requeue(trial)

    def _requeue(self, trial: optuna.trial.FrozenTrial) -> None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        trial_id = self._trial_id(trial.number)
        if not self._shares_journal:
            assert trial.datetime_start is not None
            requeue(self._storage.engine, trial_id, trial.datetime_start)
            return
        # Nobody else who shares the journal claims a trial meanwhile; its own process may end it.
        with suppress(UpdateFinishedTrialError):
            # Whoever asks for it next has not signed it yet, and is not to be taken for the one who left it.
            self._storage.set_trial_user_attr(trial_id, "owner", None)
            self._storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def _lives(self, number: int, owner: str | None) -> bool:
        """Whether the process that runs a trial is there: looked up on this machine, else by its signs of life."""
        if owner is not None and (known := is_running(owner)) is not None:
            return known
        if owner is None and self._shares_journal:
            return False  # it was made and not signed by a process that is no longer in `claim`
        sign = self._study.user_attrs.get(f"alive {owner}") if owner else number
        # By this process's clock alone: those of two machines need not agree.
        key = owner or f"unowned {number}"
        before, since = self._seen.get(key, (None, 0.0))
        if key not in self._seen or sign != before:
            self._seen[key] = (sign, time.monotonic())
            return True
        return time.monotonic() - since < STALE

    def _running(self) -> list[optuna.trial.FrozenTrial]:
        from optuna.trial import TrialState

        return self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _trial_id(self, number: int) -> int:
        found: int = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        return found

    def _params(self, trial: optuna.trial.FrozenTrial) -> Params:
        if trial.number == 0:
            return dict(self.space.default)
        return {key: trial.params[key] for key in self.space.spreads if key in trial.params}

    def _refuse_other_settings(self, settings: dict[str, str], where: object) -> None:
        before = self._study.user_attrs.get("settings")
        if before is None:
            self._study.set_user_attr("settings", settings)
            return
        keys = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
        if keys:
            listed = ", ".join(
                f"{key}={before.get(key, 'absent')} there and {settings.get(key, 'absent')} here" for key in keys[:5]
            )
            raise RunError(
                f"{without_passwords(str(where))} holds a search of another configuration: {listed}; give the same one "
                "to go on with it, or another run_dir (with search.storage, another search.study)"
            )


def storage_errors() -> tuple[type[Exception], ...]:
    """What a storage raises that cannot be reached, or written for a while."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    # Optuna has its own for what goes wrong in its transactions, and SQLAlchemy's for the rest.
    return OSError, StorageInternalError, SQLAlchemyError


def _outcome(trial: optuna.trial.FrozenTrial) -> Outcome | None:
    content = trial.user_attrs.get("outcome")
    return from_json(content) if content and trial.state.is_finished() else None


def _experimental() -> type[Warning]:
    from optuna.exceptions import ExperimentalWarning

    return ExperimentalWarning
