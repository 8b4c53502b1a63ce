"""A plan in lines for a person: pure."""

from __future__ import annotations

from collections.abc import Iterator

from graft.config import Config, SearchBackend
from graft.launcher.calibration import Span
from graft.launcher.job import Entry
from graft.launcher.plan import Plan, dollars, longest_seconds
from graft.launcher.prices import Prices
from graft.launcher.requests import DAY_S
from graft.storage import s3_uri


def describe(plan: Plan, config: Config, prices: Prices, region: str | None) -> Iterator[str]:
    """A plan in lines for a person."""
    kind = "tuning job" if plan.jobs > 1 or _is_tuning(config, plan.entry) else "training job"
    count = f"{plan.jobs} training jobs of 1 tuning job" if kind == "tuning job" else "1 training job"
    each = " each" if plan.jobs > 1 else ""
    how = "spot" if config.launcher.spot else "on demand"
    yield f"plan: {count}, {plan.instances} x {plan.instance_type}{each}, {how}, in {region or prices.region}"
    where = s3_uri(config.launcher.bucket or "BUCKET", config.launcher.prefix, "jobs", "NAME")
    yield f"creates: the {kind}, {where}/ (source, checkpoints, results), a log in CloudWatch"
    at_a_time = f", {plan.parallel} jobs at a time" if plan.jobs > 1 else ""
    yield f"minutes: {plan.minutes.low:.0f} .. {plan.minutes.high:.0f}{at_a_time}; waiting for machines is not billed"
    yield f"dollars: {_cost(plan, prices, region)}"
    yield f"ends by itself: {_end(plan, config)}"
    yield from (f"assumed: {assumption}" for assumption in plan.assumptions)


def compare_backends(one: Plan, many: Plan, chosen: SearchBackend) -> str:
    """One sentence: what a search costs in both backends, and the difference."""
    names = {SearchBackend.one_job: one, SearchBackend.tuning_job: many}
    costs = [
        f"search.backend={backend.name}{' (chosen)' if backend is chosen else ''} "
        f"{dollars(plan.usd) if plan.usd else 'at an unknown price'} in {plan.minutes.low:.0f} .. "
        f"{plan.minutes.high:.0f} minutes"
        for backend, plan in names.items()
    ]
    if not (one.usd and many.usd):
        return f"both: {'; '.join(costs)}"
    more = Span(many.usd.low - one.usd.low, many.usd.high - one.usd.high)
    return (
        f"both: {'; '.join(costs)}: {many.jobs} jobs, each with a start and a look at the photos of its own, cost "
        f"{dollars(more)} more"
    )


def _is_tuning(config: Config, entry: Entry) -> bool:
    return entry is Entry.tune and config.search.backend is SearchBackend.tuning_job


def _cost(plan: Plan, prices: Prices, region: str | None) -> str:
    dated = f"{prices.region}, prices of {prices.date}, {prices.source}"
    if plan.usd is None:
        guide = prices.of(plan.instance_type, None)
        known = f"; in {prices.region} it is ${guide:g} an hour (prices of {prices.date})" if guide else ""
        there = region or prices.region
        return (
            f"unknown: no price of {plan.instance_type} in {there} here{known}; "
            f"`python -m graft.launcher prices {there}` reads AWS's list"
        )
    return f"{dollars(plan.usd)} at ${plan.usd_per_hour:g} an hour ({dated}), plus cents for S3 and logs"


def _end(plan: Plan, config: Config) -> str:
    limits, each = plan.limits, "each job " if plan.jobs > 1 else ""
    key = "budget.usd" if limits.seconds < longest_seconds(config) else "launcher.max_hours"
    if limits.spot_seconds is None:
        return f"{each}after {_hours(plan, limits.seconds)} ({key})"
    of_all = "budget.usd" if limits.spot_seconds < limits.seconds + DAY_S else f"{key} and a day"
    life = f"; each of its lives after {limits.seconds / 3600:.3g} h ({key})" if of_all != key else ""
    return (
        f"{each}after {_hours(plan, limits.spot_seconds)} at most, waiting and interruptions included ({of_all}){life}"
    )


def _hours(plan: Plan, seconds: int) -> str:
    """So many seconds of a job, and what they cost."""
    hours = seconds / 3600
    cost = "" if plan.usd_per_hour is None else f", ${hours * plan.instances * plan.usd_per_hour:.2f}"
    return f"{hours:.3g} h{cost}"
