"""What a sum of dollars buys: `budget.usd` as time."""

from __future__ import annotations

import math


def seconds_for(usd: float, usd_per_hour: float) -> int:
    """Whole seconds that `usd` pays for; at least one."""
    return max(math.floor(usd / usd_per_hour * 3600), 1)
