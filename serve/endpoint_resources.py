"""What an endpoint consists of, in the account: whether it is there, created, removed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from graft.errors import CloudError, ConfigError
from graft.launcher.account import DEPLOYMENT
from graft.launcher.calls import (
    Pause,
    client,
    code_of,
    explained,
    is_absent,
    is_passing,
    message_of,
    once_it_arrived,
    patiently,
)
from graft.terminal import say, status_line
from serve.endpoint_requests import Kind, Resource, Step

# Of a kind: its service, the operations that describe and delete it, and the parameter that names it.
_OPERATIONS = {
    Kind.model: ("sagemaker", "DescribeModel", "DeleteModel", "ModelName"),
    Kind.config: ("sagemaker", "DescribeEndpointConfig", "DeleteEndpointConfig", "EndpointConfigName"),
    Kind.endpoint: ("sagemaker", "DescribeEndpoint", "DeleteEndpoint", "EndpointName"),
    Kind.schedule: ("scheduler", "GetSchedule", "DeleteSchedule", "Name"),
}
_ARNS = {Kind.model: "ModelArn", Kind.config: "EndpointConfigArn", Kind.endpoint: "EndpointArn"}
_MOVING = ("Creating", "Updating", "SystemUpdating", "RollingBack")  # an endpoint that cannot be deleted yet
# IAM tells all its servers of a new role within seconds; Scheduler refuses one that it has not heard of.
_ROLE_S = 60.0


def describe(resource: Resource, region: str) -> dict[str, Any] | None:
    """What the service says of it; None where it is not there.

    Raises:
        CloudError: the service cannot be asked.
    """
    service, read, _, parameter = _OPERATIONS[resource.kind]
    try:
        with explained(str(resource)):
            answer: dict[str, Any] = call(service, read, region)(**{parameter: resource.name})
            return answer
    except CloudError as error:
        if is_absent(error):
            return None
        raise


def check_absent(resources: Iterable[Resource], region: str, endpoint: str) -> None:
    """Refuse a name under which something is there.

    Raises:
        ConfigError: what there is.
        CloudError: the service cannot be asked.
    """
    answers = {resource: describe(resource, region) for resource in resources}
    there = {resource: answer for resource, answer in answers.items() if answer is not None}
    if not there:
        return
    ours = all(deployment_of(resource, answer, region) for resource, answer in there.items())
    again = f", or the same after `python -m serve delete endpoint={endpoint}`" if ours else ""
    listed = ", ".join(str(resource) for resource in there)
    raise ConfigError(f"endpoint={endpoint}: there is {listed} already; accepted is another name{again}")


def create(step: Step, region: str, deployment: str, *, pause: Pause = time.sleep) -> None:
    """Send a request that creates something.

    Raises:
        ConfigError: somebody else has made one of this name meanwhile.
        CloudError: the service refuses or cannot be reached; whether it is there then has to be asked.
    """
    deadline = time.monotonic() + _ROLE_S
    while True:
        try:
            with explained(f"creating {step.resource}"):
                call(step.service, step.operation, region)(**step.request)
            return
        except CloudError as error:
            if _exists_already(error):
                if is_of(step.resource, region, deployment):  # the first attempt's answer got lost
                    return
                raise ConfigError(
                    f"endpoint={step.resource.name}: {step.resource} was made by another deployment meanwhile; "
                    "accepted is another name"
                ) from error
            if not _is_new_role(error) or time.monotonic() > deadline:
                raise
        pause(2.0)


def is_of(resource: Resource, region: str, deployment: str) -> bool:
    """Whether it was made by a deployment.

    Raises:
        CloudError: the service cannot be asked.
    """
    answer = describe(resource, region)
    return answer is not None and deployment_of(resource, answer, region) == deployment


def comes_to_be_of(resource: Resource, region: str, deployment: str, *, pause: Pause = time.sleep) -> bool:
    """As `is_of`, but what is not there is looked for as long as a request may be on its way.

    Raises:
        CloudError: the service cannot be asked.
    """
    answer = once_it_arrived(lambda: describe(resource, region), pause=pause)
    return answer is not None and deployment_of(resource, answer, region) == deployment


def deployment_of(resource: Resource, answer: Mapping[str, Any], region: str) -> str | None:
    """Id of the deployment that made something, told from what `describe` gives; None where it is somebody else's.

    Raises:
        CloudError: the service cannot be asked.
    """
    if resource.kind is Kind.schedule:  # a schedule of the default group takes no tags
        word, _, number = str(answer.get("Description", "")).partition(" ")
        return number if word == DEPLOYMENT and number else None
    return tags_of(str(answer[_ARNS[resource.kind]]), region).get(DEPLOYMENT)


def tags_of(arn: str, region: str) -> dict[str, str]:
    """The tags of something of SageMaker's.

    Raises:
        CloudError: the service cannot be asked.
    """
    with explained(f"the tags of {arn}"):
        pages = client("sagemaker", region).get_paginator("list_tags").paginate(ResourceArn=arn)
        return {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}


def remove(resource: Resource, region: str, *, pause: Pause = time.sleep) -> bool:
    """Delete it, and wait until it is gone; returns whether there was one.

    Raises:
        CloudError: it cannot be deleted.
    """
    if resource.kind is Kind.archive:
        return _remove_archive(resource, region)
    if resource.kind is Kind.endpoint:
        return _remove_endpoint(resource, region, pause)
    return _delete(resource, region)


def minutes_since(started: float) -> str:
    """Of `time.monotonic`, in words."""
    return f"{(time.monotonic() - started) / 60:.0f} min"


def _remove_endpoint(resource: Resource, region: str, pause: Pause) -> bool:
    """As `remove`; one that is being created can only be deleted after that."""
    started, seen = time.monotonic(), list[str]()
    with status_line(f"deleting {resource}") as line:

        def was_there() -> bool | None:
            answer = describe(resource, region)
            if answer is None:
                return bool(seen)
            status = str(answer["EndpointStatus"])
            if status in _MOVING and status not in seen:
                say(f"{resource} is {status}: it can be deleted once that has ended, which may take an hour")
            seen.append(status)
            line(f"deleting {resource}: {status}, {minutes_since(started)}")
            if status not in (*_MOVING, "Deleting"):
                _delete(resource, region)
            return None

        return patiently(was_there, pause)


def _delete(resource: Resource, region: str) -> bool:
    service, _, delete, parameter = _OPERATIONS[resource.kind]
    try:
        with explained(f"deleting {resource}"):
            call(service, delete, region)(**{parameter: resource.name})
    except CloudError as error:
        if is_absent(error):
            return False
        raise
    return True


def _remove_archive(resource: Resource, region: str) -> bool:
    bucket, _, key = resource.name.removeprefix("s3://").partition("/")
    with explained(f"deleting {resource}"):
        client("s3", region).delete_object(Bucket=bucket, Key=key)
    return True


def _exists_already(error: CloudError) -> bool:
    return code_of(error) in ("ConflictException", "ResourceInUse") or "already existing" in message_of(error)


def _is_new_role(error: CloudError) -> bool:
    return "assume the role" in message_of(error) and not is_passing(error)


def call(service: str, operation: str, region: str) -> Any:
    """The method of boto3 for an operation as the API names it."""
    from botocore import xform_name

    return getattr(client(service, region), xform_name(operation))
