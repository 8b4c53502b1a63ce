"""95 % intervals: of a share, and the quantiles for one of a mean. Plain arithmetic."""

from __future__ import annotations

import math

from graft.errors import DataError

Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
# 97.5 % quantiles of Student's t with 1, 2, .. degrees of freedom (any table), then the normal one.
_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927, without continuity correction).

    Args:
        correct: successes, 0..n.
        n: trials, at least 1.

    Returns:
        (low, high), both in 0..1, with low <= correct / n <= high.

    Raises:
        DataError: n is 0, or correct is not in 0..n.
    """
    if n < 1:
        raise DataError("no images to measure")
    if not 0 <= correct <= n:
        raise DataError(f"correct: {correct} of {n} images; accepted: 0 to {n}")
    share, z2 = correct / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At 0 and n the exact bound is the share itself; rounding must not move it past the share.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    return _T975[freedom - 1] if freedom <= len(_T975) else 1.96 + 2.5 / freedom
