"""When an ordinary run stopped gaining, by single photos and by means."""

from __future__ import annotations

import numpy as np
import pytest

from graft.plateau import FEWEST_PHOTOS, Settled, settled

N = 100


def photos(mean: float, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Losses whose differences from another seed's have a standard deviation of about 0.14."""
    noise = np.random.default_rng(seed).normal(0, 0.1, N)
    return np.asarray(mean + noise - noise.mean(), np.float64)


def test_a_gain_that_single_photos_make_sure_counts_and_one_within_noise_does_not() -> None:
    # The interval of a mean difference of N photos is 0.14 / 10 * 1.98 = 0.028 wide each way.
    course = {10: photos(1.0, 0), 20: photos(0.9, 1), 30: photos(0.89, 2), 40: photos(0.95, 3)}
    assert settled(course) == Settled(20, 40, paired=True)


def test_photos_that_differ_much_but_all_gain_alike_make_a_small_gain_sure() -> None:
    hard = np.linspace(0, 5, N)  # unpaired, a gain of 0.01 would drown in this
    course = {10: hard, 20: hard - 0.01 + 0.001 * np.sin(np.arange(N))}
    assert settled(course) == Settled(20, 20, paired=True)


def test_the_interval_is_students() -> None:
    # Differences 2 above and 2 below their mean, ten of each: the standard deviation is 2 * sqrt(20 / 19).
    half = 2.093 * 2 * (20 / 19) ** 0.5 / 20**0.5
    assert half == pytest.approx(0.960, abs=1e-3)
    spread = np.tile([-2.0, 2.0], 10)
    base = np.zeros(20)
    assert settled({1: base + spread + half + 0.01, 2: base}) == Settled(2, 2, paired=True)
    assert settled({1: base + spread + half - 0.01, 2: base}) == Settled(1, 2, paired=True)


@pytest.mark.parametrize(
    ("means", "step"),
    [
        # From 2.0 to 1.0: what falls by 0.01 or less is none.
        ((2.0, 1.5, 1.01, 1.0), 30),
        ((2.0, 1.5, 1.02, 1.0), 40),
        ((1.0, 1.2, 1.3), 10),
        ((float("inf"), 1.2, 1.1), 30),
    ],
)
def test_means_alone_gain_from_a_hundredth_of_the_whole_fall_on(means: tuple[float, ...], step: int) -> None:
    course = {10 * (place + 1): np.array([mean]) for place, mean in enumerate(means)}
    assert settled(course) == Settled(step, 10 * len(means), paired=False)


def test_few_photos_count_as_means_do() -> None:
    few = {1: np.linspace(1, 2, FEWEST_PHOTOS - 1), 2: np.linspace(0.9, 1.9, FEWEST_PHOTOS - 1)}
    found = settled(few)
    assert found is not None
    assert not found.paired
    more = settled({step: np.append(losses, losses[-1]) for step, losses in few.items()})
    assert more is not None
    assert more.paired


@pytest.mark.parametrize("course", [{}, {5: np.array([np.nan])}])
def test_nothing_is_said_of_nothing(course: dict[int, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]) -> None:
    assert settled(course) is None


def test_the_share_of_steps_after() -> None:
    assert Settled(94, 376, paired=True).share_after == 0.75
    assert Settled(0, 0, paired=False).share_after == 0.0
