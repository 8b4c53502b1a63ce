"""The IAM policies that a configuration needs, and nothing beside: pure functions to JSON.

Three documents: what the person who starts jobs may do, what the jobs' role may do, and who may take that role. The
actions are those of AWS's "Actions, resources, and condition keys for Amazon SageMaker AI" and of the page on
execution roles; names of everything that graft creates begin with graft-.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from graft.config import Config, DataKind, SearchBackend
from graft.launcher.account import found_region, is_weights_file

Statement = dict[str, Any]
Policy = dict[str, Any]

NAMES = "graft-*"
TTL_ROLE = "graft-endpoint-ttl"  # under which endpoints delete themselves
_LOGS = "/aws/sagemaker/TrainingJobs"


def policies(config: Config, endpoint: str | None = None) -> dict[str, Policy]:
    """The three documents: `user`, `role` and `trust`.

    Args:
        config: of a run or a search, and of `serve.*`.
        endpoint: name of an endpoint that is to be deployed, asked, listed and deleted; None: jobs alone.

    Where the configuration does not say role, region or bucket, the names stand in capitals: ROLE, REGION, BUCKET.
    """
    return {
        "user": _document(*_of_user(config), *(_of_deployer(config, endpoint) if endpoint else ())),
        "role": _document(*_of_role(config), *(_of_container(config, endpoint) if endpoint else ())),
        "trust": _document(
            {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
        ),
    }


def _of_user(config: Config) -> Iterator[Statement]:
    names = "training-job", "CreateTrainingJob", "DescribeTrainingJob", "StopTrainingJob"
    yield _jobs(config, *names)
    listed = ["sagemaker:ListTrainingJobs", "sagemaker:ListHyperParameterTuningJobs"]
    if config.search.backend is SearchBackend.tuning_job:
        actions = "Create{}", "Describe{}", "Stop{}", "ListTrainingJobsFor{}"
        tuning = (action.format("HyperParameterTuningJob") for action in actions)
        yield _jobs(config, "hyper-parameter-tuning-job", *tuning)
    yield _allow([*listed, "pricing:GetProducts"], ["*"])  # these know no resource
    role = config.launcher.role or f"arn:{_partition(config)}:iam::*:role/ROLE"
    yield _allow(["iam:PassRole"], [role]) | {
        "Condition": {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}
    }
    yield from _files(config)
    yield _allow(["logs:DescribeLogStreams", "logs:GetLogEvents"], _log_groups(config, _LOGS))


def _of_role(config: Config) -> Iterator[Statement]:
    yield from _files(config)
    yield _allow(
        ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
        _log_groups(config, _LOGS),
    )
    yield _allow(["cloudwatch:PutMetricData"], ["*"]) | {
        "Condition": {"StringLike": {"cloudwatch:namespace": "/aws/sagemaker/*"}}
    }
    yield _allow(["ecr:GetAuthorizationToken"], ["*"])  # knows no resource
    yield _allow(_PULL, [_repository(config, config.launcher.image, "pytorch-training")])
    if config.launcher.subnets:
        yield _allow(_NETWORK, ["*"])


def _files(config: Config) -> Iterator[Statement]:
    """Photos and weights are read; only graft's own folder is written."""
    yield _allow(["s3:GetObject", "s3:PutObject"], [_bucket(config, f"{_own(config)}*")])
    yield _allow(["s3:ListBucket"], sorted(_bucket(config, name) for name in _read_buckets(config)))
    if read := list(_read(config)):
        yield _allow(["s3:GetObject"], [_bucket(config, place) for place in read])


def _of_deployer(config: Config, name: str) -> Iterator[Statement]:
    """What `python -m serve deploy`, predict, list and delete ask for, beside what starting jobs takes."""
    model, settings, endpoint = (_hosted(config, kind, name) for kind in ("model", "endpoint-config", "endpoint"))
    yield _allow([f"sagemaker:{verb}Model" for verb in ("Create", "Describe", "Delete")], [model])
    yield _allow([f"sagemaker:{verb}EndpointConfig" for verb in ("Create", "Delete")], [settings])
    yield _allow(["sagemaker:CreateEndpoint"], [endpoint, settings])
    yield _allow([f"sagemaker:{verb}Endpoint" for verb in ("Delete", "Invoke")], [endpoint])
    yield _allow(["sagemaker:AddTags"], [model, settings, endpoint])
    yield _allow(["s3:DeleteObject"], [_bucket(config, f"{_own(config)}endpoints/{name}/*")])
    yield from _of_list(config)
    schedule = _schedule(config, f"graft-{name}")
    yield _allow(["scheduler:DeleteSchedule"], [schedule])
    if config.serve.ttl == "none":
        return
    role = config.serve.ttl_role or f"arn:{_partition(config)}:iam::*:role/{TTL_ROLE}"
    yield _allow(["scheduler:CreateSchedule"], [schedule])
    yield _allow(["iam:PassRole"], [role]) | {
        "Condition": {"StringEquals": {"iam:PassedToService": "scheduler.amazonaws.com"}}
    }
    if not config.serve.ttl_role:
        actions = ("CreateRole", "GetRole", "PutRolePolicy", "TagRole", "UpdateAssumeRolePolicy")
        yield _allow([f"iam:{action}" for action in actions], [role])


def _of_list(config: Config) -> Iterator[Statement]:
    """What `list` reads, of endpoints of any name: which of them are graft's, it knows by their tags."""
    model, settings, endpoint = (_hosted(config, kind, "*") for kind in ("model", "endpoint-config", "endpoint"))
    yield _allow(["sagemaker:ListEndpoints", "sagemaker:ListModels"], ["*"])  # these know no resource
    yield _allow(["sagemaker:ListTags"], [model, settings, endpoint])
    yield _allow(["sagemaker:DescribeEndpoint", "sagemaker:DescribeEndpointConfig"], [endpoint, settings])
    yield _allow(["scheduler:GetSchedule"], [_schedule(config, NAMES)])


def _of_container(config: Config, name: str) -> Iterator[Statement]:
    """What an endpoint does under its role, beside what jobs do."""
    yield _allow(
        ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
        _log_groups(config, f"/aws/sagemaker/Endpoints/{name}"),
    )
    yield _allow(_PULL, [_repository(config, config.serve.image, "pytorch-inference")])


def _hosted(config: Config, kind: str, name: str) -> str:
    """ARN of a model, a configuration or an endpoint: SageMaker writes names in lower case there."""
    return f"arn:{_partition(config)}:sagemaker:{_region(config)}:*:{kind}/{name.lower()}"


def _schedule(config: Config, name: str) -> str:
    return f"arn:{_partition(config)}:scheduler:{_region(config)}:*:schedule/default/{name}"


_PULL = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
# Of a role whose jobs run in a VPC, as AWS's page on execution roles lists them.
_NETWORK = [
    f"ec2:{action}"
    for action in (
        "CreateNetworkInterface",
        "CreateNetworkInterfacePermission",
        "DeleteNetworkInterface",
        "DeleteNetworkInterfacePermission",
        "DescribeDhcpOptions",
        "DescribeNetworkInterfaces",
        "DescribeSecurityGroups",
        "DescribeSubnets",
        "DescribeVpcs",
    )
]


def _document(*statements: Statement) -> Policy:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _allow(actions: list[str], resources: list[str]) -> Statement:
    return {"Effect": "Allow", "Action": actions, "Resource": resources}


def _jobs(config: Config, kind: str, *actions: str) -> Statement:
    arn = f"arn:{_partition(config)}:sagemaker:{_region(config)}:*:{kind}/{NAMES}"
    return _allow([f"sagemaker:{action}" for action in (*actions, "AddTags")], [arn])


def _region(config: Config) -> str:
    return found_region(config) or "REGION"


def _partition(config: Config) -> str:
    region = _region(config)
    return "aws-cn" if region.startswith("cn-") else "aws-us-gov" if region.startswith("us-gov-") else "aws"


def _bucket(config: Config, place: str) -> str:
    return f"arn:{_partition(config)}:s3:::{place}"


def _own_bucket(config: Config) -> str:
    return config.launcher.bucket or "BUCKET"


def _own(config: Config) -> str:
    """Bucket and prefix that graft writes to, with a slash behind."""
    prefix = config.launcher.prefix.strip("/")
    return f"{_own_bucket(config)}/{prefix}/" if prefix else f"{_own_bucket(config)}/"


def _read(config: Config) -> Iterator[str]:
    """What jobs read beside their own places, without s3://."""
    if config.data.kind is DataKind.folder and config.data.root.startswith("s3://"):
        yield config.data.root.removeprefix("s3://").rstrip("/") + "/*"
    if is_weights_file(config.model.weights) and config.model.weights.startswith("s3://"):
        yield config.model.weights.removeprefix("s3://")


def _read_buckets(config: Config) -> set[str]:
    return {_own_bucket(config), *(place.partition("/")[0] for place in _read(config))}


def _log_groups(config: Config, name: str) -> list[str]:
    group = f"arn:{_partition(config)}:logs:{_region(config)}:*:log-group:{name}"
    return [group, f"{group}:*"]


def _repository(config: Config, image: str | None, of_aws: str) -> str:
    """The repository of a container, in whichever account AWS keeps its own for the region where none is given."""
    if image and ".dkr.ecr." in image:
        registry, _, name = image.partition("/")
        account, region = registry.split(".")[0], registry.split(".")[3]
        name = re.split("[:@]", name)[0]  # without tag and digest
        return f"arn:{_partition(config)}:ecr:{region}:{account}:repository/{name}"
    return f"arn:{_partition(config)}:ecr:{_region(config)}:*:repository/{of_aws}"
