"""Making an endpoint: everything is checked first, and what was begun is taken back where anything goes wrong."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from graft.errors import CloudError, ConfigError, GraftError, RunError
from graft.launcher.calls import Pause, patiently
from graft.launcher.validation import check_request
from graft.s3 import S3Store
from graft.signals import exit_when_told
from graft.storage import file_md5
from graft.terminal import say, status_line
from serve.endpoint_parity import check_endpoint
from serve.endpoint_removal import remove_all, what_remains
from serve.endpoint_requests import Deployment, Kind, Resource, Step, steps_of
from serve.endpoint_resources import create, describe, minutes_since
from serve.endpoint_role import make_ttl_role


def make_endpoint(deployment: Deployment, archive: Path, bundle: Path) -> float:
    """Create an endpoint and ask it for its parity samples; what was begun is removed where that fails.

    Args:
        deployment: what is to be.
        archive: model.tar.gz.
        bundle: the same, unpacked.

    Returns:
        The worst relative difference of the endpoint's logits from the parity samples'.

    Raises:
        GraftError: why it failed, and what remains.
        KeyboardInterrupt, SystemExit: it was stopped by Ctrl-C, SIGTERM or SIGHUP; what remains has been said.
    """
    with exit_when_told():
        return _make_endpoint(deployment, archive, bundle)


def _make_endpoint(deployment: Deployment, archive: Path, bundle: Path) -> float:
    """As `make_endpoint`."""
    steps, region = list(steps_of(deployment)), deployment.account.region
    for step in steps:
        check_request(step.operation, step.request, step.service)
    begun: list[Resource] = [deployment.archive]
    try:
        _send(archive, deployment.archive)
        if deployment.until and not deployment.serve.ttl_role:
            make_ttl_role(deployment.account)
        for step in steps:
            _begin(step, begun, deployment)
        wait_for_endpoint(deployment.name, region)
        say("asking the endpoint for the parity samples")
        return check_endpoint(deployment.name, region, bundle, deployment.computes_in)
    except GraftError as error:
        raise type(error)(f"{error}\n{_rolled_back(begun, deployment)}") from error
    except BaseException:  # a stop, or a fault of this program: whatever it is, nothing billed may stay behind
        say(f"\nstopped; {_rolled_back(begun, deployment)}")
        raise


def wait_for_endpoint(name: str, region: str, *, pause: Pause = time.sleep) -> None:
    """Wait until an endpoint is in service.

    Raises:
        CloudError: its creation failed, it is gone, or AWS has not answered for ten minutes.
    """
    endpoint, started = Resource(Kind.endpoint, name), time.monotonic()
    with status_line("asking SageMaker") as line:

        def is_in_service() -> bool | None:
            answer = describe(endpoint, region)
            if answer is None:
                raise CloudError(f"{endpoint} is gone: somebody has deleted it")
            if answer["EndpointStatus"] in ("Failed", "OutOfService"):
                raise CloudError(_failed(endpoint, str(answer.get("FailureReason", "no reason is given"))))
            line(f"{endpoint}: {answer['EndpointStatus']}, {minutes_since(started)} (usually 3 .. 10)")
            return answer["EndpointStatus"] == "InService" or None

        patiently(is_in_service, pause)


def log_group(name: str) -> str:
    """Of CloudWatch, where the container of an endpoint writes."""
    return f"/aws/sagemaker/Endpoints/{name}"


def _failed(endpoint: Resource, reason: str) -> str:
    return f"{endpoint} failed: {reason.strip().rstrip('.')}; its container's log is {log_group(endpoint.name)}"


def _begin(step: Step, begun: list[Resource], deployment: Deployment) -> None:
    """Create something; it counts as begun before it is asked for, for an answer may get lost."""
    begun.append(step.resource)
    try:
        create(step, deployment.account.region, deployment.id)
    except ConfigError:  # somebody else's, who has been quicker
        begun.remove(step.resource)
        raise


def _send(archive: Path, resource: Resource) -> None:
    folder, _, name = resource.name.rpartition("/")
    try:
        size, digest = archive.stat().st_size, file_md5(archive)
    except OSError as error:
        raise RunError(f"{archive} cannot be read ({error.strerror}); pack the run again") from error
    say(f"sending {archive} ({size / 1e6:.1f} MB) to {resource.name}")
    S3Store(folder).put(name, archive, digest)


def _rolled_back(begun: Sequence[Resource], deployment: Deployment) -> str:
    """Remove what was begun, newest first; in words what that came to."""
    say(f"rolling back {', '.join(str(resource) for resource in reversed(begun))}")
    try:
        left = remove_all(begun, deployment.account.region, deployment.id)
    except (KeyboardInterrupt, SystemExit):
        left = dict.fromkeys(begun, "stopped")
    if not left:
        return "all of it is rolled back: nothing is left, and nothing is billed any more"
    end = deployment.until if Resource(Kind.endpoint, deployment.name) in left else None
    until = (
        f"; its schedule deletes the endpoint at {end:%Y-%m-%d %H:%M} UTC" if end and end > datetime.now(UTC) else ""
    )
    return f"{what_remains(left, deployment.name)}{until}"
