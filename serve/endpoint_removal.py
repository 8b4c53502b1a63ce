"""Taking an endpoint away: in the order in which AWS lets go, and with what could not be removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from graft.errors import CloudError
from graft.launcher.calls import patiently
from serve.endpoint_requests import Kind, Resource
from serve.endpoint_resources import comes_to_be_of, is_of, remove

# The endpoint first, for it is billed; its schedule stays as long as it does. The model last, for it knows where the
# archive is.
ORDER = (Kind.endpoint, Kind.schedule, Kind.config, Kind.archive, Kind.model)


def remove_all(resources: Iterable[Resource], region: str, deployment: str | None = None) -> dict[Resource, str]:
    """Remove what is there; returns what remains, with the reason.

    Where the endpoint cannot be removed, the rest is left as it is: it needs its configuration, and the schedule is
    what may still end it.

    Args:
        resources: the same one twice is taken once.
        region: where they are.
        deployment: where given, what another one made stays, and an endpoint that is not there is waited for: the
            request that creates it may be on its way.
    """
    waiting = sorted(set(resources), key=lambda resource: ORDER.index(resource.kind))
    left: dict[Resource, str] = {}
    for resource in waiting:
        if any(kept.kind is Kind.endpoint for kept in left):
            left[resource] = "the endpoint needs it"
            continue
        try:
            if deployment is None or _is_to_go(resource, region, deployment):
                remove(resource, region)
        except CloudError as error:
            left[resource] = str(error)
    return left


def _is_to_go(resource: Resource, region: str, deployment: str) -> bool:
    if resource.kind is Kind.archive:  # its address holds the deployment
        return True
    if resource.kind is Kind.endpoint:
        return patiently(lambda: comes_to_be_of(resource, region, deployment))
    return is_of(resource, region, deployment)


def what_remains(left: Mapping[Resource, str], endpoint: str) -> str:
    """What could not be removed, whether it is billed, and how it is tried again."""
    kinds = {resource.kind for resource in left}
    listed = ", ".join(str(resource) for resource in left)
    reason = next(iter(left.values()))
    billed = "the endpoint is billed until it is gone"
    cost = billed if Kind.endpoint in kinds else "none of that is billed but the archive's storage"
    todo = [f"`python -m serve delete endpoint={endpoint}` tries again"] if kinds != {Kind.archive} else []
    if Kind.model not in kinds:  # which alone tells `delete` where the archive is
        archives = [resource.name for resource in left if resource.kind is Kind.archive]
        todo += [f"`aws s3 rm {address}` removes the archive" for address in archives]
    return f"NOT removed: {listed} ({reason}); {cost}: {', '.join(todo)}"
