"""What is asked of SageMaker where it runs a search: a tuning job, with a training job for each trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graft.command import Spread
from graft.config import OBJECTIVES, Config, Pruner, Sampler
from graft.errors import ConfigError
from graft.launcher.account import Account
from graft.launcher.job import hyperparameter_name
from graft.launcher.requests import Channel, Limits, Request, definition, tags, toolkit_parameters

_STRATEGIES = {
    Sampler.tpe: "Bayesian",
    Sampler.gp: "Bayesian",
    Sampler.random: "Random",
    Sampler.grid: "Grid",
}


def tuning_job_request(
    config: Config,
    account: Account,
    name: str,
    channels: Sequence[Channel],
    limits: Limits,
    spreads: Mapping[str, Spread],
    trials: int,
) -> Request:
    """`CreateHyperParameterTuningJob`: a job for each trial, `launcher.max_parallel` at a time.

    Args:
        config: of the trials.
        account: where they run.
        name: of the tuning job, at most 32 characters.
        channels: what they read.
        limits: of each trial and of all together.
        spreads: key -> its values.
        trials: in all.

    Raises:
        ConfigError: the service cannot search so.
    """
    _refuse_search(config, spreads)
    return {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobConfig": _search(config, limits, spreads, trials),
        "TrainingJobDefinition": {
            "StaticHyperParameters": toolkit_parameters(account, name),
            **definition(config, account, channels, limits),
        },
        "Tags": tags(account),
    }


def _search(config: Config, limits: Limits, spreads: Mapping[str, Spread], trials: int) -> Request:
    """`HyperParameterTuningJobConfig`: what is tried, how, and how much of it."""
    search = config.search
    resources: Request = {
        "MaxNumberOfTrainingJobs": trials,
        "MaxParallelTrainingJobs": min(config.launcher.max_parallel, trials),
    }
    if limits.search_seconds:
        resources["MaxRuntimeInSeconds"] = max(limits.search_seconds, 120)  # the service's least
    return {
        "Strategy": _STRATEGIES[search.sampler],
        "HyperParameterTuningJobObjective": {
            "Type": "Maximize" if OBJECTIVES[search.objective] else "Minimize",
            "MetricName": search.objective,
        },
        "ResourceLimits": resources,
        "ParameterRanges": parameter_ranges(spreads),
        "TrainingJobEarlyStoppingType": "Auto" if search.early_stopping else "Off",
        "RandomSeed": search.seed,
    }


def parameter_ranges(spreads: Mapping[str, Spread]) -> Request:
    """`ParameterRanges` of what is searched, every number as text, as the API has it."""
    ranges: dict[str, list[Request]] = {}
    for key, spread in spreads.items():
        name = hyperparameter_name(key)
        if spread.values:
            entry: Request = {"Name": name, "Values": [_text(value) for value in spread.values]}
            ranges.setdefault("CategoricalParameterRanges", []).append(entry)
            continue
        kind = "IntegerParameterRanges" if spread.whole else "ContinuousParameterRanges"
        low, high = (int(end) if spread.whole else end for end in (spread.low, spread.high))
        scaling = "Logarithmic" if spread.log else "Linear"
        ranges.setdefault(kind, []).append(
            {"Name": name, "MinValue": _text(low), "MaxValue": _text(high), "ScalingType": scaling}
        )
    return ranges


def _refuse_search(config: Config, spreads: Mapping[str, Spread]) -> None:
    """Refuse what the service's tuning jobs cannot do."""
    if config.launcher.service_debugger or config.launcher.service_profiler:
        raise ConfigError(
            "launcher.service_debugger and launcher.service_profiler: a tuning job takes no hook and no profiler; "
            "accepted is false, or search.backend=one_job"
        )
    if config.search.pruner is not Pruner.none:
        raise ConfigError(
            f"search.pruner={config.search.pruner.name}: a tuning job stops trials by a rule of its own "
            "(search.early_stopping); accepted is none, or search.backend=one_job"
        )
    if config.search.sampler is Sampler.grid and any(not spread.values for spread in spreads.values()):
        raise ConfigError(
            "search.sampler=grid: a tuning job's grid takes lists of values; accepted is choice(..) of every key"
        )


def _text(value: Any) -> str:
    """A value as the container reads it, in Hydra's grammar."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
