"""What proposes trials: Optuna's samplers, seeded by the number of the trial and not by the process that asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from graft.command import Spread
from graft.search.space import Space, Value

if TYPE_CHECKING:
    import optuna

MOST_ON_CPU, MOST_ON_GPU = 16, 256  # trials at a time


def distributions(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    """Optuna's form of each key's values."""
    return {key: _distribution(spread) for key, spread in space.spreads.items()}


def suggested(trial: optuna.Trial, key: str, distribution: optuna.distributions.BaseDistribution) -> Value:
    """The value of one key in a trial; the one that it was given before where it was begun before."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(key, distribution.low, distribution.high, log=distribution.log)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(key, distribution.low, distribution.high, log=distribution.log)
    assert isinstance(distribution, CategoricalDistribution)
    value: Value = trial.suggest_categorical(key, distribution.choices)
    return value


def startup(trials: int) -> int:
    """Trials at random before TPE or GP begins to learn: a third of a short search, at most Optuna's own 10."""
    return min(10, max(3, trials // 3))


def portion(sampler: str, trials: int, ended: int, device: str) -> int:
    """How many trials to ask for at a time.

    Heads that train together cost little more than one, but a sampler that learns should see results between. On a
    CPU, 16 share nearly all there is to share (docs/decisions/0009), and fewer are lost when a process is killed; a
    GPU takes as many as its memory holds (`train_heads` sees to that). TPE gets about five rounds: a batch is spread
    out by Optuna's constant liar. GP has no such means, so after its random start it is asked for one at a time.
    """
    most = MOST_ON_CPU if device == "cpu" else MOST_ON_GPU
    if sampler in ("random", "grid"):
        return most
    random_ones = startup(trials) - ended
    if sampler == "gp":
        return min(most, random_ones) if random_ones > 0 else 1
    return min(most, max(4, -(-trials // 5)))


class Proposals:
    """Optuna's sampler for one key of one trial, the same whoever asks: see `numbered_sampler`."""

    def __init__(self, sampler: str, seed: int, trials: int) -> None:
        self.sampler, self.seed, self.startup = sampler, seed, startup(trials)

    def sampler_of(self, number: int, key: str) -> optuna.samplers.BaseSampler:
        """Seeded by the trial and the key: a trial that was killed between two of them gets the same second one."""
        from optuna.samplers import GPSampler, RandomSampler, TPESampler

        words = [self.seed, number, *key.encode()]
        state = int(np.random.SeedSequence(words).generate_state(1)[0])
        if self.sampler == "tpe":
            return TPESampler(seed=state, n_startup_trials=self.startup, multivariate=False)
        at_random = RandomSampler(state)
        if self.sampler == "gp":
            return GPSampler(seed=state, n_startup_trials=self.startup, independent_sampler=at_random)
        return at_random

    def of_whole_trial(self, number: int) -> optuna.samplers.BaseSampler | None:
        """What proposes all keys of a trial at once, by what was told before; None where each key stands alone."""
        return self.sampler_of(number, "") if number and self.sampler in ("tpe", "gp") else None


class WholeTrials:
    """A study as GP is to see it: without ended trials that lack a key of the space.

    GP models the keys that all completed trials have. Trial 0 has none whose default lies outside of the space, and
    that key would be drawn at random for ever.
    """

    def __init__(self, study: Any, keys: Iterable[str]) -> None:
        self._study, self._keys = study, frozenset(keys)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, *args: Any, **kwargs: Any) -> list[optuna.trial.FrozenTrial]:
        """Optuna's samplers read the trials by this, and not by its public `get_trials`."""
        trials = self._study._get_trials(*args, **kwargs)
        return [trial for trial in trials if not trial.state.is_finished() or self._keys <= trial.params.keys()]


def numbered_sampler(space: Space, sampler: str, *, seed: int, trials: int) -> optuna.samplers.BaseSampler:
    """A sampler whose proposal for a trial depends on the seed, the trial's number and the trials told before.

    So a search that was killed and goes on proposes what the whole one would have; `random` and `grid` propose the
    same whoever asks and in whatever order. Trial 0 is the default configuration.

    Args:
        space: what is searched.
        sampler: tpe, random, grid or gp.
        seed: of the proposals.
        trials: in all.
    """
    from optuna.samplers import BaseSampler

    proposals = Proposals(sampler, seed, trials)
    grid = space.grid() if sampler == "grid" else []

    def whole_trials(study: Any) -> Any:  # as far as Optuna sees, a study
        return WholeTrials(study, space.spreads)

    class NumberedSampler(BaseSampler):  # here, for Optuna is loaded only now
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            inner, whole = proposals.of_whole_trial(trial.number), whole_trials(study)
            return inner.infer_relative_search_space(whole, trial) if inner else {}

        def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
            inner, whole = proposals.of_whole_trial(trial.number), whole_trials(study)
            return inner.sample_relative(whole, trial, search_space) if inner else {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            if trial.number == 0:
                return space.default[param_name]
            if grid:
                return grid[trial.number - 1][param_name]
            inner = proposals.sampler_of(trial.number, param_name)
            return inner.sample_independent(study, trial, param_name, param_distribution)

    return NumberedSampler()


def _distribution(spread: Spread) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if spread.values:
        return CategoricalDistribution(spread.values)
    if spread.whole:
        return IntDistribution(int(spread.low), int(spread.high), log=spread.log)
    return FloatDistribution(spread.low, spread.high, log=spread.log)
