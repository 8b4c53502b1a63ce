"""What is asked of SageMaker: pure functions from the configuration to the requests of its API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graft.config import OBJECTIVES, Config, InputMode
from graft.errors import ConfigError
from graft.launcher.account import Account
from graft.launcher.job import BASE, ENTRY_SCRIPT, metric_regex

Request = dict[str, Any]

DAY_S = 86_400
_LONGEST_S = 28 * DAY_S  # of MaxRuntimeInSeconds, in the documentation of StoppingCondition


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
        spot_seconds: of each job on spare capacity, from its creation: waiting and all its lives. An interruption
            starts the clock of `seconds` again, so this alone bounds what is billed. None: on demand.
    """

    seconds: int
    search_seconds: int | None = None
    spot_seconds: int | None = None


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
        "HyperParameters": toolkit_parameters(account, name) | {"sagemaker_job_name": json.dumps(name)},
        **definition(config, account, channels, limits),
        "CheckpointConfig": {
            "S3Uri": checkpoints or checkpoints_uri(account, name),
            "LocalPath": str(BASE / "checkpoints"),
        },
        "Tags": tags(account),
        "ProfilerConfig": _profiler(config, account, name),
    }
    if config.launcher.service_debugger:
        _refuse_debugger(account.image)
        request["DebugHookConfig"] = _hook(config, account, name)
    return request


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
        "Tags": tags(account),
    }


def endpoint_config_request(account: Account, name: str, model: str, *, instance_type: str = "ml.m5.large") -> Request:
    """`CreateEndpointConfig`: one machine that takes all traffic."""
    variant = {
        "VariantName": "all",
        "ModelName": model,
        "InstanceType": instance_type,
        "InitialInstanceCount": 1,
        "InitialVariantWeight": 1.0,
    }
    return {
        "EndpointConfigName": name,
        "ProductionVariants": [variant],
        "Tags": tags(account),
    }


def endpoint_request(account: Account, name: str, config_name: str) -> Request:
    """`CreateEndpoint`: what costs money from then on."""
    return {"EndpointName": name, "EndpointConfigName": config_name, "Tags": tags(account)}


def source_uri(account: Account, name: str) -> str:
    """Where the source archive of a job lies."""
    return account.uri("jobs", name, "source", "source.tar.gz")


def checkpoints_uri(account: Account, name: str) -> str:
    """Where the service keeps /opt/ml/checkpoints of a job."""
    return account.uri("jobs", name, "checkpoints")


def definition(config: Config, account: Account, channels: Sequence[Channel], limits: Limits) -> Request:
    """What a training job and the trials of a tuning job have in common.

    Raises:
        ConfigError: a VPC is described by halves.
    """
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
        "StoppingCondition": _stopping(limits, spot=c.spot),
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


def _stopping(limits: Limits, *, spot: bool) -> Request:
    seconds = min(limits.seconds, _LONGEST_S)
    wait = min(max(limits.spot_seconds or 0, seconds), _LONGEST_S)  # AWS takes no less than MaxRuntimeInSeconds
    return {"MaxRuntimeInSeconds": seconds} | ({"MaxWaitTimeInSeconds": wait} if spot else {})


def toolkit_parameters(account: Account, name: str) -> dict[str, str]:
    """What the toolkit in the container reads: JSON values, as SageMaker's own SDK writes them."""
    return {
        "sagemaker_program": json.dumps(ENTRY_SCRIPT),
        "sagemaker_submit_directory": json.dumps(source_uri(account, name)),
        "sagemaker_container_log_level": "30",
        "sagemaker_region": json.dumps(account.region),
    }


def _channel(channel: Channel) -> Request:
    source = {"S3DataType": "S3Prefix", "S3Uri": channel.uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": channel.name, "InputMode": channel.mode.name, "DataSource": {"S3DataSource": source}}


def tags(account: Account) -> list[Request]:
    """`launcher.tags` as the API has them."""
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
