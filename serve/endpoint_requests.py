"""What is asked of AWS for an endpoint: pure functions from a deployment to requests, in the order of their sending."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from graft.config import Engine, ServeConfig
from graft.errors import ConfigError
from graft.launcher.account import DEPLOYMENT, Account
from graft.launcher.policy import TTL_ROLE
from graft.launcher.requests import Request, endpoint_config_request, endpoint_request, model_request
from graft.storage import s3_uri

FOLDER, ARCHIVE = "endpoints", "model.tar.gz"
DELETE_ENDPOINT = "aws-sdk:sagemaker:deleteEndpoint"  # a universal target of EventBridge Scheduler
# Of `serve.*`, what AWS's container heeds, for serve/handler.py reads it; and what our own does, by entrypoint.sh.
HANDLER_KEYS = ("engine", "precision", "threads", "top_k")
RUNTIME_KEYS = (
    *(*HANDLER_KEYS, "mode", "queue", "deadline", "max_bytes", "max_pixels", "max_photos"),
    *("allow_url", "url_hosts"),
)
AWS_IMAGE = "/pytorch-inference"  # its repository in any of AWS's registries


class Kind(Enum):
    """What an endpoint consists of."""

    archive = "archive"
    model = "model"
    config = "endpoint configuration"
    schedule = "schedule"
    endpoint = "endpoint"


@dataclass(frozen=True)
class Resource:
    """Something in the account: its kind, and its name or, of an archive, its address."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind.value} {self.name}"


@dataclass(frozen=True)
class Step:
    """A request and what it creates."""

    resource: Resource
    service: str
    operation: str
    request: Request


@dataclass(frozen=True)
class Deployment:
    """An endpoint that is to be.

    Attributes:
        name: of endpoint, configuration and model.
        id: of this deployment, unlike any other's.
        account: where; its image is the endpoint's container.
        serve: machine, engine and time to live.
        precision: that the model was packed in.
        until: when it deletes itself, UTC; None: never.
    """

    name: str
    id: str
    account: Account
    serve: ServeConfig
    precision: str
    until: datetime | None

    @property
    def computes_in(self) -> str:
        """The precision that the endpoint is told to compute in."""
        given = self.serve.precision.value
        return self.precision if given == "auto" else given

    @property
    def archive(self) -> Resource:
        """Where model.tar.gz goes."""
        return Resource(Kind.archive, archive_uri(self.account.bucket, self.account.prefix, self.name, self.id))


def archive_uri(bucket: str, prefix: str, name: str, deployment: str) -> str:
    """Address of the archive of a deployment: no other's, so that it can be removed with it."""
    return f"{archives_uri(bucket, prefix, name)}/{deployment}/{ARCHIVE}"


def archives_uri(bucket: str, prefix: str, name: str) -> str:
    """Address of the folder with the archives of all deployments of an endpoint."""
    return s3_uri(bucket, prefix, FOLDER, name)


def is_archive_of(uri: str, name: str, deployment: str) -> bool:
    """Whether an address is what `archive_uri` gives for some bucket and prefix, which need not be known any more."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    prefix = key.rpartition(f"{FOLDER}/{name}/{deployment}/{ARCHIVE}")[0]
    return uri == archive_uri(bucket, prefix, name, deployment)


def schedule_name(name: str) -> str:
    """Of the schedule that deletes an endpoint."""
    return f"graft-{name}"


def parts_of(name: str) -> list[Resource]:
    """All that an endpoint consists of but its archive: what must not be there before, and is looked for after."""
    return [
        Resource(Kind.model, name),
        Resource(Kind.config, name),
        Resource(Kind.schedule, schedule_name(name)),
        Resource(Kind.endpoint, name),
    ]


def steps_of(deployment: Deployment) -> Iterator[Step]:
    """The requests that make an endpoint of an archive that is in S3.

    The schedule comes before the endpoint: whatever becomes of this machine, nothing is billed that does not end.
    """
    name, account = deployment.name, deployment.account
    model, config, schedule, endpoint = parts_of(name)
    requests = {
        model: model_request(account, name, deployment.archive.name, environment=environment_of(deployment)),
        config: endpoint_config_request(account, name, name, instance_type=deployment.serve.instance_type),
        endpoint: endpoint_request(account, name, name),
    }
    yield Step(model, "sagemaker", "CreateModel", requests[model])
    yield Step(config, "sagemaker", "CreateEndpointConfig", requests[config])
    if deployment.until:
        yield Step(schedule, "scheduler", "CreateSchedule", schedule_request(deployment, deployment.until))
    yield Step(endpoint, "sagemaker", "CreateEndpoint", requests[endpoint])


def environment_of(deployment: Deployment) -> dict[str, str]:
    """What the container is told: the toolkit its entry and one worker, the server how to compute and answer.

    One worker: AWS's stack starts one for each core, each with an engine on all cores, and at concurrency 8 that
    answered a tenth of the photos (docs/decisions/0022). The precision is always named, so that it is known how
    exactly the parity samples must be met; of the other keys, those that were changed.
    """
    serve = deployment.serve
    told = {key: _text(getattr(serve, key)) for key in changed_keys(serve)} | {"precision": deployment.computes_in}
    return {
        **{f"GRAFT_SERVE_{key.upper()}": value for key, value in told.items()},
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
        "SAGEMAKER_MODEL_SERVER_WORKERS": "1",
        "SAGEMAKER_REGION": deployment.account.region,
    }


def changed_keys(serve: ServeConfig) -> list[str]:
    """Of `RUNTIME_KEYS`, those that are not at their defaults."""
    default = ServeConfig()
    return [key for key in RUNTIME_KEYS if getattr(serve, key) != getattr(default, key)]


def check_container(serve: ServeConfig) -> None:
    """Refuse what the container would not heed, or not come up with.

    Raises:
        ConfigError: a key that AWS's container does not know was changed, or an engine that packed models do not have.
    """
    if serve.engine is Engine.torch:
        raise ConfigError(
            "serve.engine=torch: an endpoint is given a packed model, which serves openvino; accepted is auto or "
            "openvino"
        )
    if serve.image is not None and AWS_IMAGE not in serve.image:
        return
    for key in changed_keys(serve):
        if key not in HANDLER_KEYS:
            raise ConfigError(
                f"serve.{key}={_text(getattr(serve, key))}: AWS's container does not heed it; accepted is the default, "
                f"{_text(getattr(ServeConfig(), key))}, or serve.image=URI of the image that serve/Dockerfile makes"
            )


def _text(value: Any) -> str:
    """As the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(value)}]"
    return str(value.value if isinstance(value, Enum) else value)


def schedule_request(deployment: Deployment, until: datetime) -> Request:
    """`CreateSchedule`: at `until` (UTC, to the second) the endpoint is deleted; then the schedule is gone too."""
    account = deployment.account
    return {
        "Name": schedule_name(deployment.name),
        "Description": f"{DEPLOYMENT} {deployment.id}",  # a schedule of the default group takes no tags
        "ScheduleExpression": f"at({until:%Y-%m-%dT%H:%M:%S})",
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Target": {
            "Arn": f"arn:{partition_of(account.role)}:scheduler:::{DELETE_ENDPOINT}",
            "RoleArn": deployment.serve.ttl_role or ttl_role_arn(account.role),
            "Input": json.dumps({"EndpointName": deployment.name}),
        },
    }


def policy(*statements: dict[str, Any]) -> str:
    """An IAM policy document."""
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def ttl_role_arn(role: str) -> str:
    """ARN of the role under which endpoints delete themselves, in the account of another role."""
    return f"arn:{partition_of(role)}:iam::{account_number(role)}:role/{TTL_ROLE}"


def partition_of(arn: str) -> str:
    """Such as aws, or aws-cn."""
    return _field(arn, 1) or "aws"


def account_number(arn: str) -> str:
    """Twelve digits."""
    return _field(arn, 4)


def _field(arn: str, place: int) -> str:
    fields = arn.split(":")
    return fields[place] if len(fields) > place else ""
