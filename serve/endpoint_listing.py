"""`python -m serve list`: everything of this project that is billed by the hour, how old it is, and dollars so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from graft.config import LauncherConfig
from graft.errors import CloudError
from graft.launcher.account import DEPLOYMENT
from graft.launcher.calls import client, explained
from graft.launcher.listing import in_words, list_jobs, usd_so_far
from graft.launcher.prices import Prices, read_prices
from graft.storage import local_path
from serve.endpoint_arguments import read_endpoint_arguments
from serve.endpoint_requests import Kind, Resource, schedule_name
from serve.endpoint_resources import describe, tags_of


@dataclass(frozen=True)
class Costing:
    """Something that is billed, or that an endpoint left behind.

    Attributes:
        what: endpoint, training job, tuning job, or left over.
        name: of it.
        state: as SageMaker has it.
        machines: such as 1 x ml.m5.large.
        age_s: seconds for which it has been billed at most.
        usd: so far, at most; None where the price is not known or nothing is billed by the hour.
        end: when it ends by itself, or what to do.
        unpriced: what of it is billed by the hour at a price that is not known.
    """

    what: str
    name: str
    state: str
    machines: str
    age_s: float
    usd: float | None
    end: str
    unpriced: tuple[str, ...] = ()


def show(argv: Sequence[str]) -> None:
    """Print what is billed by the hour in the region, what endpoints left there, and where files are kept in S3.

    Raises:
        CloudError: AWS cannot be asked.
    """
    arguments = read_endpoint_arguments(argv, named=False)
    region = arguments.region
    prices = read_prices(local_path(arguments.config.features.cache_dir, "features.cache_dir"), region)
    found = [*list_endpoints(region, prices), *list_running_jobs(region, prices), *list_left_over(region)]
    if found:
        _print_table(found, region, prices)
    else:
        print(f"nothing of graft is billed by the hour in {region}: no endpoint, no running job")
    print(in_storage(arguments.config.launcher))


def in_storage(account: LauncherConfig) -> str:
    """Where files are kept that nobody removes by itself, and which are billed as S3 storage."""
    place = "launcher.bucket (not set here)"
    if account.bucket:
        place = "/".join(["s3:/", account.bucket, *filter(None, [account.prefix.strip("/")]), ""])
    return f"not counted: S3 storage; files of jobs and of endpoints that are not deleted lie in {place}"


def list_endpoints(region: str, prices: Prices) -> Iterator[Costing]:
    """The endpoints that `python -m serve deploy` made."""
    for entry in _paged(region, "list_endpoints", "Endpoints"):
        if DEPLOYMENT not in tags_of(str(entry["EndpointArn"]), region):
            continue
        name = str(entry["EndpointName"])
        answer = describe(Resource(Kind.endpoint, name), region)
        if answer is None:  # deleted meanwhile
            continue
        config = describe(Resource(Kind.config, str(answer["EndpointConfigName"])), region) or {}
        yield of_endpoint(answer, config, _end(name, region), prices, region)


def of_endpoint(answer: dict[str, Any], config: dict[str, Any], end: str, prices: Prices, region: str) -> Costing:
    """From the answers of DescribeEndpoint and DescribeEndpointConfig; its age is billed, but for its creation."""
    variants = config.get("ProductionVariants", [])
    machines = [(int(variant["InitialInstanceCount"]), str(variant["InstanceType"])) for variant in variants]
    name, age = str(answer["EndpointName"]), _age(answer["CreationTime"])
    per_hour = {machine: prices.of(machine, region) for _, machine in machines}
    unpriced = tuple(machine for machine, price in per_hour.items() if price is None)
    if not machines:  # its configuration is gone
        unpriced = (f"the machine of {name}",)
    usd = None if unpriced else sum(count * (per_hour[machine] or 0.0) for count, machine in machines) * age / 3600
    listed = ", ".join(f"{count} x {machine}" for count, machine in machines)
    return Costing("endpoint", name, str(answer["EndpointStatus"]), listed, age, usd, end, unpriced)


def list_running_jobs(region: str, prices: Prices) -> Iterator[Costing]:
    """Training and tuning jobs that run now; what tuning jobs cost stands with their trials."""
    for job in list_jobs(region):
        if not job.is_billed:
            continue
        how = "when it is done, or after its time limit"
        if job.machines is None:
            yield Costing(f"{job.kind} job", job.name, job.state, "its trials'", job.ran_s, None, how)
            continue
        name, count = job.machines
        usd = usd_so_far(job, region, prices)
        unpriced = (name,) if usd is None else ()
        yield Costing("training job", job.name, job.state, f"{count} x {name}", job.ran_s, usd, how, unpriced)


def list_left_over(region: str) -> Iterator[Costing]:
    """Models whose endpoint is gone, by its schedule or by hand: their archives are kept in S3."""
    for entry in _paged(region, "list_models", "Models"):
        name = str(entry["ModelName"])
        if DEPLOYMENT not in tags_of(str(entry["ModelArn"]), region):
            continue
        if describe(Resource(Kind.endpoint, name), region) is None:
            todo = f"python -m serve delete endpoint={name}"
            yield Costing("left over", name, "archive in S3", "none", _age(entry["CreationTime"]), None, todo)


def _end(name: str, region: str) -> str:
    try:
        answer = describe(Resource(Kind.schedule, schedule_name(name)), region)
    except CloudError as error:
        return f"unknown ({error})"
    if answer is None:
        return f"never: python -m serve delete endpoint={name}"
    return str(answer["ScheduleExpression"]).removeprefix("at(").removesuffix(")").replace("T", " ") + " UTC"


def _paged(region: str, operation: str, key: str) -> Iterator[dict[str, Any]]:
    with explained(operation.replace("_", " ")):
        for page in client("sagemaker", region).get_paginator(operation).paginate():
            yield from page[key]


def _age(created: datetime) -> float:
    return max((datetime.now(UTC) - created).total_seconds(), 0.0)


def _print_table(found: Sequence[Costing], region: str, prices: Prices) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"what is billed in {region}, but for S3 storage", title_justify="left")
    for column in ("what", "name", "state", "machines", "age", "so far", "ends"):
        table.add_column(column, overflow="fold")
    for row in found:
        usd = "unknown" if row.unpriced else "" if row.usd is None else f"${row.usd:.2f}"
        table.add_row(row.what, row.name, row.state, row.machines, in_words(row.age_s), usd, row.end)
    out = Console(width=None if sys.stdout.isatty() else 160)
    out.print(table)
    out.print(in_all(found, region, prices), highlight=False, soft_wrap=True)


def in_all(found: Sequence[Costing], region: str, prices: Prices) -> str:
    """What all of it has cost so far, and of what that is not known."""
    total = sum(row.usd or 0 for row in found)
    known = f"${total:.2f} so far, at {prices.region}'s prices of {prices.date}"
    unpriced = list(dict.fromkeys(name for row in found for name in row.unpriced))
    if not unpriced:
        return f"at most {known}"
    return (
        f"at least {known}; no price of {', '.join(unpriced)} in {region} "
        f"(`python -m graft.launcher prices {region}` reads AWS's list)"
    )
