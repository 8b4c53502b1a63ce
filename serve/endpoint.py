"""`python -m serve deploy` and `delete`: an endpoint of SageMaker, its price known before, and nothing left after."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from graft.artifacts import read_manifest
from graft.config import Config
from graft.errors import CloudError, ConfigError
from graft.launcher.account import DEPLOYMENT, account_of, found_region, missing
from graft.launcher.policy import TTL_ROLE
from graft.launcher.prices import read_prices
from graft.launcher.submit import check_bucket
from graft.signals import exit_when_told
from graft.storage import local_path
from graft.terminal import say
from serve.archive import opened
from serve.endpoint_arguments import EndpointArguments, read_endpoint_arguments
from serve.endpoint_creation import log_group, make_endpoint
from serve.endpoint_image import find_serving_image
from serve.endpoint_plan import EndpointPlan, check_endpoint_budget, describe_endpoint, make_endpoint_plan
from serve.endpoint_removal import remove_all, what_remains
from serve.endpoint_requests import (
    Deployment,
    Kind,
    Resource,
    archives_uri,
    check_container,
    is_archive_of,
    parts_of,
)
from serve.endpoint_resources import check_absent, deployment_of, describe
from serve.engines import offered


def deploy(argv: Sequence[str]) -> None:
    """Make an endpoint of a trained model, and call it good once it has answered the parity samples as it must.

    Raises:
        ConfigError: something is missing, not accepted, above the budget, or the name is taken.
        GraftError: it failed; the message says why and what remains.
    """
    # As train.py and tune.py have the key.
    given = [re.sub(r"^launcher\.plan=", "serve.plan=", argument) for argument in argv]
    arguments = read_endpoint_arguments(given, places=("run_dir", "bundle"))
    config, name = arguments.config, arguments.endpoint
    check_container(config.serve)
    region = found_region(config)
    prices = read_prices(local_path(config.features.cache_dir, "features.cache_dir"), region)
    plan = make_endpoint_plan(config, name, prices, region)
    lines = describe_endpoint(plan, config, prices, region)
    if config.serve.plan:
        print("\n".join(lines))
        check_endpoint_budget(plan, config)
        return
    _require(config)
    check_endpoint_budget(plan, config)
    check_absent(parts_of(name), arguments.region, name)
    archive = _archive_of(arguments)
    for line in lines:
        say(line)
    with opened(archive) as bundle:
        deployment = _deployment(arguments, plan, archive, bundle)
        check_bucket(deployment.account)
        difference = make_endpoint(deployment, archive, bundle)
    print(_deployed(deployment, plan, difference))


def delete(argv: Sequence[str]) -> None:
    """Remove an endpoint and all that belongs to it; where nothing of it is there, that is said and no error.

    Raises:
        ConfigError: something of this name was not made by a deployment; nothing is removed then.
        CloudError: something could not be removed; the message says what, and whether it is billed.
        KeyboardInterrupt, SystemExit: it was stopped by Ctrl-C, SIGTERM or SIGHUP; what remains has been said.
    """
    arguments = read_endpoint_arguments(argv)
    name, region = arguments.endpoint, arguments.region
    with exit_when_told():
        found = _looked_up(name, region)
        _remove(found, name, region)
    if not found:
        print(f"nothing of endpoint {name} is there in {region}, and nothing of it is billed")
        print(_perhaps_archive(arguments))
        return
    print(f"deleted: {', '.join(str(resource) for resource in found)}; nothing of it is billed any more")
    print(
        f"remains: the log {log_group(name)} (`aws logs delete-log-group --log-group-name {log_group(name)}`), and the "
        f"role {TTL_ROLE}, which costs nothing and serves other endpoints"
    )
    if Resource(Kind.model, name) not in found:
        print(_perhaps_archive(arguments))


def _require(config: Config) -> None:
    """Refuse to deploy without an account."""
    lines = missing(config)
    if lines:
        raise ConfigError(
            "python -m serve deploy needs:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nserve.plan=true needs none of it: it sends nothing and says what would be created and its price"
        )


def _archive_of(arguments: EndpointArguments) -> Path:
    """bundle=FILE, or what is or was packed of run_dir=PATH."""
    places = arguments.other.places
    if ("run_dir" in places) == ("bundle" in places):
        raise ConfigError("give run_dir=PATH, whose model is packed, or bundle=PATH of a model.tar.gz, one of the two")
    if "run_dir" in places:
        from serve.packing import archive_of_run

        return archive_of_run(places["run_dir"], arguments.config.serve)
    archive = places["bundle"]
    if not archive.is_file():
        raise ConfigError(
            f"bundle={archive}: accepted is a model.tar.gz; of a run, give run_dir=PATH, and it is packed"
        )
    return archive


def _deployment(arguments: EndpointArguments, plan: EndpointPlan, archive: Path, bundle: Path) -> Deployment:
    config = arguments.config
    packed = read_manifest(bundle).export
    if packed is None:
        raise ConfigError(f"bundle={archive} was not packed; accepted is what `python -m serve pack` wrote")
    offered(archive, packed.precision, config.serve.precision.value)  # the container would not come up
    now = datetime.now(UTC)
    number = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    account = account_of(config, find_serving_image(config, arguments.region))
    account = replace(account, tags=(*account.tags, (DEPLOYMENT, number)))
    until = None if plan.hours is None else now + timedelta(hours=plan.hours)
    return Deployment(arguments.endpoint, number, account, config.serve, packed.precision, until)


def _deployed(deployment: Deployment, plan: EndpointPlan, difference: float) -> str:
    name, region = deployment.name, deployment.account.region
    cost = "at an unknown price" if plan.usd_per_hour is None else f"${plan.usd_per_hour:g} an hour"
    end = "until it is deleted" if deployment.until is None else f"until {deployment.until:%Y-%m-%d %H:%M} UTC"
    return (
        f"endpoint {name} is in service in {region} and reproduces the parity samples "
        f"(they differ by {difference:.1g})\n"
        f"billed: {cost} {end}\n"
        f"next: python -m serve predict PHOTO endpoint={name}\n"
        f"end it: python -m serve delete endpoint={name}"
    )


def _perhaps_archive(arguments: EndpointArguments) -> str:
    """What to do about an archive that no model leads to."""
    launcher = arguments.config.launcher
    folder = archives_uri(launcher.bucket or "BUCKET", launcher.prefix, arguments.endpoint)
    return (
        "an archive stays in S3 where a deployment was killed before it made its model: "
        f"`aws s3 rm --recursive {folder}/` removes it"
    )


def _remove(found: Sequence[Resource], name: str, region: str) -> None:
    """Remove all of an endpoint; raises as `delete`."""
    if not found:
        return
    say(f"deleting {', '.join(str(resource) for resource in found)}")
    try:
        left = remove_all(found, region)
    except (KeyboardInterrupt, SystemExit):
        say(f"\nstopped; {what_remains(dict.fromkeys(found, 'perhaps'), name)}")
        raise
    if left:
        raise CloudError(what_remains(left, name))


def _looked_up(name: str, region: str) -> list[Resource]:
    """As `_found`; where that does not come to its end, it is said that all is still there."""
    untouched = (
        f"nothing was deleted, and endpoint {name} is billed where there is one: `python -m serve delete "
        f"endpoint={name}` tries again"
    )
    try:
        return _found(name, region)
    except CloudError as error:
        raise CloudError(f"{error}; {untouched}") from error
    except (KeyboardInterrupt, SystemExit):
        say(f"\nstopped; {untouched}")
        raise


def _found(name: str, region: str) -> list[Resource]:
    """What is there of an endpoint.

    Raises:
        ConfigError: some of it was not made by a deployment.
    """
    found, foreign = [], []
    for resource in parts_of(name):
        answer = describe(resource, region)
        if answer is None:
            continue
        number = deployment_of(resource, answer, region)
        if number is None:
            foreign.append(str(resource))
            continue
        found.append(resource)
        if resource.kind is Kind.model:
            uri = str(answer.get("PrimaryContainer", {}).get("ModelDataUrl", ""))
            if is_archive_of(uri, name, number):
                found.append(Resource(Kind.archive, uri))
    if foreign:
        raise ConfigError(
            f"endpoint={name}: {', '.join(foreign)} was not made by `python -m serve deploy`, and nothing was deleted; "
            "accepted is a name all of whose parts it made"
        )
    return found
