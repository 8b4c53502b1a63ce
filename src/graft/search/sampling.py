"""What proposes trials: Optuna's samplers, seeded by the number of the trial and not by the process that asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from graft.command import Spread
from graft.search.space import Space, Value

if TYPE_CHECKING:
    import optuna


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


def portion(sampler: str, trials: int, begun: int) -> int:
    """How many trials to ask for at a time.

    Heads that train together cost little more than one, but a sampler that learns should see results between. 16
    share nearly all there is to share (docs/decisions/0009), and fewer are lost when a process is killed. TPE gets
    about five rounds: a batch is spread out by Optuna's constant liar. GP has no such means, so after its random
    start it is asked for one at a time.
    """
    if sampler in ("random", "grid"):
        return 16
    random_ones = startup(trials) - begun
    if sampler == "gp":
        return min(16, random_ones) if random_ones > 0 else 1
    return min(16, max(4, -(-trials // 5)))


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
    from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

    begin = startup(trials)
    grid = space.grid() if sampler == "grid" else []
    makers: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": lambda state: TPESampler(seed=state, n_startup_trials=begin, multivariate=False),
        "gp": lambda state: GPSampler(seed=state, n_startup_trials=begin, independent_sampler=RandomSampler(state)),
    }

    class NumberedSampler(BaseSampler):  # here, for Optuna is loaded only now
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            if trial.number == 0 or sampler not in makers:
                return {}
            found: dict[str, Any] = self._inner(trial.number, "").infer_relative_search_space(study, trial)
            return found

        def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
            if trial.number == 0 or sampler not in makers:
                return {}
            found: dict[str, Any] = self._inner(trial.number, "").sample_relative(study, trial, search_space)
            return found

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            if trial.number == 0:
                return space.default[param_name]
            if grid:
                return grid[trial.number - 1][param_name]
            inner = self._inner(trial.number, param_name)
            return inner.sample_independent(study, trial, param_name, param_distribution)

        def _inner(self, number: int, key: str) -> BaseSampler:
            # By key too: a trial that was killed between two of them gets the same second one.
            words = [seed, number, *key.encode()]
            state = int(np.random.SeedSequence(words).generate_state(1)[0])
            return makers.get(sampler, RandomSampler)(state)

    return NumberedSampler()


def _distribution(spread: Spread) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if spread.values:
        return CategoricalDistribution(spread.values)
    if spread.whole:
        return IntDistribution(int(spread.low), int(spread.high), log=spread.log)
    return FloatDistribution(spread.low, spread.high, log=spread.log)
