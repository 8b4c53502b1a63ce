"""What an endpoint costs, and when it ends: pure, without network, torch or AWS's packages."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from graft.config import Config
from graft.errors import ConfigError
from graft.launcher.plan import no_price
from graft.launcher.prices import Prices
from serve.endpoint_requests import archive_uri

DAY_H = 24
MONTH_H = 730  # 365 days / 12, as AWS's calculator counts
# An endpoint that is being created cannot be deleted, and where its container does not come up that may take an hour
# (github.com/aws/amazon-sagemaker-examples/issues/3432).
LEAST_H, MOST_H = 1, 365 * 24
_TTL = re.compile(r"(\d+(?:\.\d+)?)([hd])")
_ACCEPTED = f"accepted is 2h, 3d, from {LEAST_H}h to {MOST_H // 24}d, or none"


def hours_of(ttl: str) -> float | None:
    """Hours of `serve.ttl`; None where the endpoint does not end by itself.

    Raises:
        ConfigError: it is no such time, or too short or long.
    """
    if ttl == "none":
        return None
    match = _TTL.fullmatch(ttl)
    hours = float(match[1]) * (DAY_H if match[2] == "d" else 1) if match else 0.0
    if not LEAST_H <= hours <= MOST_H:
        raise ConfigError(f"serve.ttl={ttl}: {_ACCEPTED}")
    return hours


@dataclass(frozen=True)
class EndpointPlan:
    """What would be created, and what it costs.

    Attributes:
        name: of the endpoint.
        instance_type: of its one machine.
        usd_per_hour: of that; None where the price is not known.
        hours: until it deletes itself; None: never.
    """

    name: str
    instance_type: str
    usd_per_hour: float | None
    hours: float | None

    @property
    def usd(self) -> float | None:
        """Until it deletes itself, or of a month; None where the price is not known."""
        return None if self.usd_per_hour is None else self.usd_per_hour * (self.hours or MONTH_H)


def make_endpoint_plan(config: Config, name: str, prices: Prices, region: str | None) -> EndpointPlan:
    """The plan of a deployment.

    Args:
        config: with `serve.*`.
        name: of the endpoint.
        prices: of a region.
        region: where it would be; None: where the prices hold.

    Raises:
        ConfigError: `serve.ttl` is no time.
    """
    serve = config.serve
    return EndpointPlan(name, serve.instance_type, prices.of(serve.instance_type, region), hours_of(serve.ttl))


def check_endpoint_budget(plan: EndpointPlan, config: Config) -> None:
    """Refuse a plan that costs more than `budget.usd`.

    Raises:
        ConfigError: it does, or its price is not known.
    """
    budget = config.budget.usd
    if budget is None:
        return
    if plan.usd is None or plan.usd_per_hour is None:
        raise no_price(budget, plan.instance_type)
    needed = math.ceil(round(plan.usd * 100, 6)) / 100  # in cents: 24 x 0.115 is a little above 2.76
    if needed > budget:
        span = "a month" if plan.hours is None else f"{plan.hours:g} h (serve.ttl)"
        paid = math.floor(budget / plan.usd_per_hour)
        shorter = f"serve.ttl={paid}h, " if paid >= LEAST_H else ""
        raise ConfigError(
            f"budget.usd={budget:g}: {span} of {plan.instance_type} cost ${plan.usd:.2f}; accepted is {shorter}"
            f"a cheaper serve.instance_type, or budget.usd={needed:.2f} or more"
        )


def describe_endpoint(plan: EndpointPlan, config: Config, prices: Prices, region: str | None) -> Iterator[str]:
    """A plan in lines for a person."""
    where = region or prices.region
    yield f"plan: endpoint {plan.name}, 1 x {plan.instance_type}, in {where}"
    yield f"container: {config.serve.image or 'of AWS for PyTorch 2.6 (serve.image names another)'}"
    schedule = "" if plan.hours is None else f", schedule graft-{plan.name} that deletes it"
    archive = archive_uri(config.launcher.bucket or "BUCKET", config.launcher.prefix, plan.name, "ID")
    yield f"creates: {archive}, model, endpoint configuration and endpoint {plan.name}{schedule}, a log in CloudWatch"
    yield f"dollars: {_cost(plan, prices, where)}"
    yield f"ends by itself: {_end(plan)}"
    if region is None:
        yield f"assumed: region {prices.region}, for none is set (launcher.region)"


def _cost(plan: EndpointPlan, prices: Prices, where: str) -> str:
    if plan.usd_per_hour is None:
        return (
            f"unknown: no price of {plan.instance_type} in {where} here; "
            f"`python -m graft.launcher prices {where}` reads AWS's list"
        )
    hour = plan.usd_per_hour
    return (
        f"${hour:g} an hour, ${hour * DAY_H:.2f} a day, ${hour * MONTH_H:.2f} a month, asked or not "
        f"({prices.region}, prices of {prices.date}, {prices.source}), plus cents for S3 and logs"
    )


def _end(plan: EndpointPlan) -> str:
    if plan.hours is None:
        month = "at an unknown price" if plan.usd is None else f"at ${plan.usd:.2f} a month"
        return f"never (serve.ttl=none), {month}: `python -m serve delete endpoint={plan.name}`"
    cost = "" if plan.usd is None else f", ${plan.usd:.2f}"
    return f"after {plan.hours:g} h{cost} (serve.ttl), also where this machine is off"
