"""Which keys mattered: Optuna's PED-ANOVA, with intervals by resampling the trials."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import optuna

FEWEST = 10  # trials that ended well, below which a share says nothing
RESAMPLES = 100
WIDEST = 0.6  # of an interval that still says something of a share


@dataclass(frozen=True)
class Importance:
    """The share of one key in what sets the best fifth of the trials apart from the rest.

    Attributes:
        key: of the configuration.
        share: 0..1; the shares of a search add up to 1.
        low: of the 95 % interval, the 2.5 % quantile over resampled trials.
        high: likewise, 97.5 %.
    """

    key: str
    share: float
    low: float
    high: float


def importances(
    trials: Sequence[optuna.trial.FrozenTrial], keys: Sequence[str], *, maximize: bool, seed: int
) -> list[Importance]:
    """Each key's importance, the greatest first; empty where there are too few trials to say.

    PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) as Optuna has it: a key matters where the best trials have
    other values of it than all have. It needs no forest to be fitted, so that it can be computed a hundred times.

    Args:
        trials: of the search, whatever their states.
        keys: that were searched.
        maximize: whether more is better.
        seed: of the resampling.
    """
    from optuna.trial import TrialState

    usable = [t for t in trials if t.state is TrialState.COMPLETE and set(keys) <= set(t.params)]
    if len(usable) < FEWEST or len(keys) < 2:
        return []
    rng = np.random.default_rng(seed)
    whole = _shares(usable, keys, maximize)
    drawn = [
        _shares([usable[index] for index in rng.integers(len(usable), size=len(usable))], keys, maximize)
        for _ in range(RESAMPLES)
    ]
    found = []
    for key in keys:
        low, high = np.quantile([shares[key] for shares in drawn], [0.025, 0.975])
        found.append(Importance(key, whole[key], float(low), float(high)))
    return sorted(found, key=lambda importance: -importance.share)


def says_something(found: Sequence[Importance]) -> bool:
    """Whether the interval of the greatest share, which is the first, is narrow enough to be read."""
    return bool(found) and found[0].high - found[0].low <= WIDEST


def _shares(trials: Sequence[optuna.trial.FrozenTrial], keys: Sequence[str], maximize: bool) -> dict[str, float]:
    import optuna
    from optuna.exceptions import ExperimentalWarning
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    study = optuna.create_study(direction="maximize" if maximize else "minimize")
    study.add_trials(trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # of the best fifth: a tenth of 20 trials is too few to have a distribution
        evaluator = PedAnovaImportanceEvaluator(target_quantile=0.2)
        found = get_param_importances(study, evaluator=evaluator, params=list(keys))
    return {key: float(found.get(key, 0.0)) for key in keys}
