"""What a command would create, how long it takes and what it costs: pure, without network, torch or AWS's packages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from graft.budget import seconds_for
from graft.config import Config, DataKind, SearchBackend
from graft.errors import ConfigError
from graft.launcher.calibration import BACKBONE_GMACS, Calibration, Span, look_seconds
from graft.launcher.job import Entry
from graft.launcher.prices import Machine, Prices
from graft.launcher.requests import DAY_S, Limits

DOGS = 8_351  # photos of the data set that graft was made for
_CLASSES_OF_DEMO = 8

# Seconds of a job beside its work, billed: from the container's start to the first line of train.py (pulling the
# image, installing what it lacks), and evaluation, report and upload at the end.
_START_S = Span(90, 420)
_END_S = Span(20, 90)
_COPY_S = Span(0.002, 0.012)  # a photo from S3 to the job's disk
_HEAD_S = Span(0.000_01, 0.000_1)  # one photo's features through one head and back, once
_LEAST_SEARCH_S = 60  # a search has at least so long, whatever its start may take
_BACKWARD = 3  # forward and backward pass of a backbone that trains, against the forward pass alone


@dataclass(frozen=True)
class Others:
    """The jobs that `budget.usd` has to last for, beside the one that is planned.

    Attributes:
        usd: what jobs before it, and those of its sweep that were submitted, cost or may cost.
        to_come: jobs of its sweep that are still to be submitted, this one included; None: any number.
    """

    usd: float = 0.0
    to_come: int | None = 1


ALONE = Others()


@dataclass(frozen=True)
class Plan:
    """What would be created, and what it takes.

    Attributes:
        entry: one training, or a search.
        jobs: how many jobs are created.
        parallel: of them at a time.
        instance_type: of each machine.
        instances: machines of each job.
        job_minutes: of one job, billed.
        usd_per_hour: of one machine; None where the price is not known.
        limits: after which jobs are ended.
        assumptions: what was taken for granted, a sentence each.
    """

    entry: Entry
    jobs: int
    parallel: int
    instance_type: str
    instances: int
    job_minutes: Span
    usd_per_hour: float | None
    limits: Limits
    assumptions: tuple[str, ...] = ()

    @property
    def minutes(self) -> Span:
        """On the clock, without waiting for machines."""
        return self.job_minutes.times(math.ceil(self.jobs / self.parallel))

    @property
    def usd(self) -> Span | None:
        """Of all jobs; None where the price is not known."""
        if self.usd_per_hour is None:
            return None
        return self.job_minutes.times(self.jobs * self.instances * self.usd_per_hour / 60)

    @property
    def most_usd(self) -> float | None:
        """What all jobs cost where each is ended by its limits; None where the price is not known."""
        if self.usd_per_hour is None:
            return None
        seconds = self.jobs * (self.limits.spot_seconds or self.limits.seconds)
        if self.limits.search_seconds is not None and self.jobs > 1:
            seconds = min(seconds, self.parallel * self.limits.search_seconds)
        return seconds * self.instances * self.usd_per_hour / 3600


def make_plan(
    config: Config,
    entry: Entry,
    trials: int,
    prices: Prices,
    calibration: Calibration,
    region: str | None,
    others: Others = ALONE,
) -> Plan:
    """The plan of a command.

    Args:
        config: of the run or the search.
        entry: which of the two.
        trials: of the search; 1 for one training.
        prices: of a region.
        calibration: of a core.
        region: where it would run; None: where the prices hold.
        others: that `budget.usd` has to last for.
    """
    many = entry is Entry.tune and config.search.backend is SearchBackend.tuning_job
    name, instances = config.launcher.instance_type, config.trainer.num_nodes
    machine = prices.machines.get(name, Machine(0.0, 4, 1 if config.trainer.accelerator.name == "gpu" else 0))
    used = replace(machine, gpus=min(machine.gpus, config.trainer.devices))
    seconds = job_seconds(config, 1 if many else trials, calibration, used)
    jobs = trials if many else 1
    parallel = min(config.launcher.max_parallel, jobs)
    price = prices.of(name, region)
    plan = Plan(
        entry,
        jobs,
        parallel,
        name,
        instances,
        seconds.times(1 / 60),
        price,
        Limits(longest_seconds(config)),
        tuple(_assumptions(config, prices, calibration, region)),
    )
    return replace(plan, limits=limits_of(plan, config, others))


def job_seconds(config: Config, trials: int, calibration: Calibration, machine: Machine) -> Span:
    """Billed seconds of one job that trains `trials` heads on one look at the photos."""
    photos, _ = photo_count(config)
    family = config.launcher.instance_type.removeprefix("ml.").partition(".")[0]
    look = look_seconds(calibration, machine, family, config.model.backbone)
    if config.trains_on_features:
        views = (1 if config.features.plain else 0) + config.features.views
        work = look.times(photos * views / config.trainer.num_nodes)
        fit = _HEAD_S.times(photos * config.trainer.max_epochs * trials)
    else:
        work = look.times(photos)
        fit = look.times(_BACKWARD * photos * config.trainer.max_epochs * trials / config.trainer.num_nodes)
    return _beside_seconds(config).plus(work).plus(fit)


def _beside_seconds(config: Config) -> Span:
    """Billed seconds of a job beside its work."""
    photos, _ = photo_count(config)
    copied = _COPY_S.times(photos if config.data.kind is DataKind.folder else 0)
    return _START_S.plus(copied).plus(_END_S)


def photo_count(config: Config) -> tuple[int, str]:
    """Number of photos, and how it is known: empty where the configuration says it."""
    if config.data.images:
        return config.data.images, ""
    if config.data.kind is DataKind.demo:
        return 2 * _CLASSES_OF_DEMO * config.data.demo_per_class, ""
    return DOGS, f"{DOGS:,} photos, as the dogs have; data.images=N says how many yours are"


def limits_of(plan: Plan, config: Config, others: Others = ALONE) -> Limits:
    """When jobs are ended: `launcher.max_hours`, or what `budget.usd` pays for where that is less.

    Of what is left of the budget, a job of a sweep may take an equal share, or what it is planned to cost at most
    where that is more: however long the jobs run, all of them together stay within the budget. On spare capacity a
    job waits a day beyond its run, which costs nothing; with a budget no longer than it pays for, as no limit of AWS's
    bounds all lives of a job without its waiting.
    """
    longest, minutes = longest_seconds(config), config.search.max_minutes
    whole = None if minutes is None else math.ceil(60 * minutes)
    if config.budget.usd is None or plan.usd is None or plan.usd_per_hour is None:
        return Limits(longest, whole, longest + DAY_S if config.launcher.spot else None)
    left = config.budget.usd - others.usd
    share = left / others.to_come if others.to_come else 0.0
    allowed = min(left, max(share, plan.usd.high))
    paid = seconds_for(allowed, plan.usd_per_hour * plan.instances)
    seconds, search = min(longest, paid), min(max(paid // plan.parallel, 1), whole or paid)
    return Limits(seconds, search, min(seconds + DAY_S, paid) if config.launcher.spot else None)


def search_minutes(plan: Plan, config: Config) -> float:
    """`search.max_minutes` of a search in one job, so that it ends by itself before its limits end it hard."""
    left = max(plan.limits.seconds - _beside_seconds(config).high, _LEAST_SEARCH_S) / 60
    return min(left, config.search.max_minutes or math.inf)


def longest_seconds(config: Config) -> int:
    """`launcher.max_hours`."""
    return math.floor(config.launcher.max_hours * 3600) or 1


def check_budget(plan: Plan, config: Config, spent: float = 0.0) -> None:
    """Refuse a plan that may cost more than `budget.usd`.

    Args:
        plan: of this command.
        config: with the budget.
        spent: what jobs before it, and the other jobs of its sweep, cost or may cost.

    Raises:
        ConfigError: it may, or its price is not known.
    """
    budget = config.budget.usd
    if budget is None:
        return
    if plan.usd is None:
        raise no_price(budget, plan.instance_type)
    total = plan.usd.high + spent
    if total > budget:
        others = f", {spent:.2f} of it for other jobs of this run or sweep" if spent else ""
        raise ConfigError(
            f"budget.usd={budget:g}: this may cost ${total:.2f}{others} ({dollars(plan.usd)}); accepted is "
            f"budget.usd={math.ceil(total * 100) / 100:.2f} or more, a cheaper launcher.instance_type, or less to do"
        )


def no_price(budget: float, instance_type: str) -> ConfigError:
    """Why no budget can be held where a machine has no price."""
    return ConfigError(
        f"budget.usd={budget:g}: the price of {instance_type} there is not known, so no budget can be held; "
        "`python -m graft.launcher prices REGION` reads it from AWS, budget.usd=null sets none"
    )


def dollars(usd: Span) -> str:
    """A range of dollars."""
    return f"${usd.low:.2f} .. ${usd.high:.2f}"


def _assumptions(config: Config, prices: Prices, calibration: Calibration, region: str | None) -> Iterator[str]:
    if region is None:
        yield f"region {prices.region}, for none is set (launcher.region)"
    _, how = photo_count(config)
    if how:
        yield how
    if config.model.backbone not in BACKBONE_GMACS:
        yield f"{config.model.backbone} computes as much as resnet50"
    yield (
        f"a core does what one of {calibration.machine} did on {calibration.date}, "
        "half to twice as fast (`python -m graft.launcher calibrate` measures this machine)"
    )
    if ".c7i." in config.launcher.instance_type or ".m7i." in config.launcher.instance_type:
        yield "its matrix units make it 3 to 16 times as fast in the backbone"
    if config.trainer.accelerator.name != "cpu":
        yield "a GPU reaches a quarter to a half of NVIDIA's stated peak; none was measured"
    machine = prices.machines.get(config.launcher.instance_type)
    if machine and machine.gpus > config.trainer.devices:
        yield f"{config.trainer.devices} of the machine's {machine.gpus} GPUs (trainer.devices={machine.gpus} uses all)"
    if config.launcher.spot:
        yield "the on-demand price; spot capacity costs less, by up to 90 %, and may take longer"
    if config.launcher.spot and config.budget.usd is not None:
        yield "with budget.usd, waiting counts towards the end: an interruption starts a job's own clock again"
