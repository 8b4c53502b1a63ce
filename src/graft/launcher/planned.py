"""The jobs of a sweep that is only planned (`-m launcher.plan=true`): what they take together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path

from graft.config import Config
from graft.launcher.calibration import Span
from graft.launcher.plan import Plan, check_budget, dollars

# By sweep: Hydra runs its members one by one in this process, and a plan leaves nothing on disk.
_PLANNED: dict[Path, list[tuple[Plan, Config]]] = {}


def note_planned(sweep_dir: Path, plan: Plan, config: Config) -> None:
    """Keep the plan of a member until all are known."""
    _PLANNED.setdefault(sweep_dir, []).append((plan, config))


def tell_planned(sweep_dir: Path) -> None:
    """Print what the members of a sweep take together; where none was planned, nothing.

    Raises:
        ConfigError: it may be more than `budget.usd`.
    """
    planned = _PLANNED.pop(sweep_dir, [])
    if not planned:
        return
    last, config = planned[-1]
    plans = [plan for plan, _ in planned]
    print(together(plans, config.launcher.max_parallel))
    check_budget(last, config, sum(plan.usd.high for plan in plans[:-1] if plan.usd))


def together(plans: Sequence[Plan], parallel: int) -> str:
    """One line: dollars and minutes of all jobs.

    Args:
        plans: one for each job.
        parallel: how many jobs at a time, at most.
    """
    known = [plan.usd for plan in plans if plan.usd]
    cost = dollars(reduce(Span.plus, known)) if len(known) == len(plans) else "at an unknown price"
    minutes = reduce(Span.plus, [plan.minutes for plan in plans])
    return (
        f"in all: {len(plans)} jobs, {cost}, {minutes.low:.0f} .. {minutes.high:.0f} minutes of jobs, "
        f"at most {parallel} at a time (launcher.max_parallel)"
    )
