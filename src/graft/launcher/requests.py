"""What is asked of SageMaker: pure functions from the configuration to the requests of its API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graft.command import Spread
from graft.config import OBJECTIVES, Config, InputMode, Pruner, Sampler
from graft.errors import ConfigError
from graft.launcher.account import Account
from graft.launcher.job import BASE, ENTRY_SCRIPT, hyperparameter_name, metric_regex

Request = dict[str, Any]

DAY_S = 86_400
_LONGEST_S = 28 * DAY_S  # of MaxRuntimeInSeconds, in the documentation of StoppingCondition
_STRATEGIES = {
    Sampler.tpe: "Bayesian",
    Sampler.gp: "Bayesian",
    Sampler.random: "Random",
    Sampler.grid: "Grid",
}


@dataclass(frozen=True)
class Channel:
    """A place in S3 that a job finds as a folder.

    Attributes:
        name: of the folder.
        uri: s3://BUCKET/PREFIX.
        mode: File copies it first, FastFile reads it as it is needed.
    """

    name: str
    uri: str
    mode: InputMode = InputMode.File


@dataclass(frozen=True)
class Limits:
    """What a job is allowed.

    Attributes:
        seconds: of each job.
        search_seconds: of a whole tuning job; None: any.
    """

    seconds: int
    search_seconds: int | None = None


def training_job_request(
    config: Config,
    account: Account,
    name: str,
    channels: Sequence[Channel],
    limits: Limits,
    checkpoints: str | None = None,
) -> Request:
    """`CreateTrainingJob`: one run, or a whole search, on instances of `launcher.instance_type`.

    Args:
        config: of the run or the search.
        account: where it runs.
        name: of the job, at most 63 characters.
        channels: what it reads.
        limits: when it is ended.
        checkpoints: s3:// place of /opt/ml/checkpoints, of an earlier job that is to be gone on with; None: its own.

    Raises:
        ConfigError: two keys contradict each other, or the container cannot do what is asked.
    """
    request: Request = {
        "TrainingJobName": name,
        "HyperParameters": _toolkit_parameters(account, name) | {"sagemaker_job_name": json.dumps(name)},
        **_definition(config, account, channels, limits),
        "CheckpointConfig": {
            "S3Uri": checkpoints or checkpoints_uri(account, name),
            "LocalPath": str(BASE / "checkpoints"),
        },
        "Tags": _tags(account),
        "ProfilerConfig": _profiler(config, account, name),
    }
    if config.launcher.service_debugger:
        _refuse_debugger(account.image)
        request["DebugHookConfig"] = _hook(config, account, name)
    return request


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
    search = config.search
    resources: Request = {
        "MaxNumberOfTrainingJobs": trials,
        "MaxParallelTrainingJobs": min(config.launcher.max_parallel, trials),
    }
    if limits.search_seconds:
        resources["MaxRuntimeInSeconds"] = max(limits.search_seconds, 120)  # the service's least
    return {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobConfig": {
            "Strategy": _STRATEGIES[search.sampler],
            "HyperParameterTuningJobObjective": {
                "Type": "Maximize" if OBJECTIVES[search.objective] else "Minimize",
                "MetricName": search.objective,
            },
            "ResourceLimits": resources,
            "ParameterRanges": parameter_ranges(spreads),
            "TrainingJobEarlyStoppingType": "Auto" if search.early_stopping else "Off",
            "RandomSeed": search.seed,
        },
        "TrainingJobDefinition": {
            "StaticHyperParameters": _toolkit_parameters(account, name),
            **_definition(config, account, channels, limits),
        },
        "Tags": _tags(account),
    }


def model_request(
    account: Account, name: str, data_uri: str, *, environment: Mapping[str, str] | None = None
) -> Request:
    """`CreateModel`: a model.tar.gz in S3 behind the container `account.image`."""
    container: Request = {"Image": account.image, "ModelDataUrl": data_uri}
    if environment:
        container["Environment"] = dict(environment)
    return {
        "ModelName": name,
        "PrimaryContainer": container,
        "ExecutionRoleArn": account.role,
        "Tags": _tags(account),
    }


def endpoint_config_request(
    account: Account, name: str, model: str, *, instance_type: str = "ml.m5.large", instances: int = 1
) -> Request:
    """`CreateEndpointConfig`: one variant that takes all traffic."""
    variant = {
        "VariantName": "all",
        "ModelName": model,
        "InstanceType": instance_type,
        "InitialInstanceCount": instances,
        "InitialVariantWeight": 1.0,
    }
    return {
        "EndpointConfigName": name,
        "ProductionVariants": [variant],
        "Tags": _tags(account),
    }


def endpoint_request(account: Account, name: str, config_name: str) -> Request:
    """`CreateEndpoint`: what costs money from then on."""
    return {"EndpointName": name, "EndpointConfigName": config_name, "Tags": _tags(account)}


def source_uri(account: Account, name: str) -> str:
    """Where the source archive of a job lies."""
    return account.uri("jobs", name, "source", "source.tar.gz")


def checkpoints_uri(account: Account, name: str) -> str:
    """Where the service keeps /opt/ml/checkpoints of a job."""
    return account.uri("jobs", name, "checkpoints")


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


def _definition(config: Config, account: Account, channels: Sequence[Channel], limits: Limits) -> Request:
    """What a training job and the trials of a tuning job have in common."""
    c = config.launcher
    request: Request = {
        "AlgorithmSpecification": {
            "TrainingImage": account.image,
            "TrainingInputMode": InputMode.File.name,
            "MetricDefinitions": [{"Name": name, "Regex": metric_regex(name)} for name in OBJECTIVES],
        },
        "RoleArn": account.role,
        "OutputDataConfig": {"S3OutputPath": account.uri("jobs")},
        "ResourceConfig": {
            "InstanceType": c.instance_type,
            "InstanceCount": config.trainer.num_nodes,
            "VolumeSizeInGB": c.volume_gb,
        },
        "StoppingCondition": _stopping(limits.seconds, spot=c.spot),
    }
    if c.spot:
        request["EnableManagedSpotTraining"] = True
    if channels:  # an empty list is refused
        request["InputDataConfig"] = [_channel(channel) for channel in channels]
    if bool(c.subnets) != bool(c.security_groups):
        raise ConfigError(
            f"launcher.subnets={c.subnets} and launcher.security_groups={c.security_groups}: give both, or neither"
        )
    if c.subnets:
        request["VpcConfig"] = {"Subnets": list(c.subnets), "SecurityGroupIds": list(c.security_groups)}
    return request


def _stopping(seconds: int, *, spot: bool) -> Request:
    seconds = min(seconds, _LONGEST_S)
    # Waiting for spare capacity costs nothing: up to a day of it.
    return {"MaxRuntimeInSeconds": seconds} | (
        {"MaxWaitTimeInSeconds": min(seconds + DAY_S, _LONGEST_S)} if spot else {}
    )


def _toolkit_parameters(account: Account, name: str) -> dict[str, str]:
    """What the toolkit in the container reads: JSON values, as SageMaker's own SDK writes them."""
    return {
        "sagemaker_program": json.dumps(ENTRY_SCRIPT),
        "sagemaker_submit_directory": json.dumps(source_uri(account, name)),
        "sagemaker_container_log_level": "20",
        "sagemaker_region": json.dumps(account.region),
    }


def _channel(channel: Channel) -> Request:
    source = {"S3DataType": "S3Prefix", "S3Uri": channel.uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": channel.name, "InputMode": channel.mode.name, "DataSource": {"S3DataSource": source}}


def _tags(account: Account) -> list[Request]:
    return [{"Key": key, "Value": value} for key, value in account.tags]


def _profiler(config: Config, account: Account, name: str) -> Request:
    """The service's profiler, off unless asked for: graft's own says more (docs/profiler.md)."""
    if not config.launcher.service_profiler:
        return {"DisableProfiler": True}
    return {"S3OutputPath": account.uri("jobs", name, "profiler"), "ProfilingIntervalInMilliseconds": 500}


def _hook(config: Config, account: Account, name: str) -> Request:
    d = config.debugger
    intervals = {"train.save_interval": str(d.train_interval), "eval.save_interval": str(d.eval_interval)}
    return {
        "S3OutputPath": account.uri("jobs", name, "debugger"),
        "CollectionConfigurations": [{"CollectionName": "losses", "CollectionParameters": intervals}],
    }


def _refuse_debugger(image: str) -> None:
    """Refuse the service's Debugger where the container has no smdebug: all of PyTorch later than 2.0."""
    repository, _, tag = image.rpartition("/")[2].partition(":")
    version = tuple(int(part) for part in tag.partition("-")[0].split(".")[:2] if part.isdigit())
    if repository.startswith("pytorch") and version > (2, 0):
        raise ConfigError(
            f"launcher.service_debugger=true: {repository}:{tag} has no smdebug, which AWS's PyTorch containers carry "
            "up to 2.0; accepted is an older image, one of your own with smdebug, or false: graft's own debugger runs "
            "in the job"
        )


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
    return str(value).lower() if isinstance(value, bool) else str(value)
