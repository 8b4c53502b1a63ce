"""What a search teaches: known answers, by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from graft.command import Spread
from graft.intervals import student
from graft.plateau import plateau
from graft.report.trials import read_search
from graft.search.advice import Skew, best_number, epoch_advice, gain, skew
from graft.search.files import write_lessons
from graft.search.importance import Importance
from graft.search.plots import draw_curves
from graft.search.pruning import hopeless, rungs
from graft.search.repeats import Repeats, repeat
from graft.search.search import advice_on_epochs, epochs_skew
from graft.search.space import Space
from graft.search.summary import epochs_in_words, gain_in_words, importance_in_words, skew_in_words
from graft.search.trials import Outcome, Record
from tests.composing import composed

# --- gain ------------------------------------------------------------------------------------------------------------


def test_a_gain_is_of_pairs_and_has_students_interval() -> None:
    found = gain([0.5, 0.6, 0.4], [0.7, 0.7, 0.7], maximize=False)
    assert found is not None
    # differences 0.2, 0.1, 0.3: mean 0.2, sd 0.1, half 4.303 * 0.1 / sqrt(3)
    assert found.mean == pytest.approx(0.2)
    assert found.low == pytest.approx(0.2 - 0.24843, abs=1e-4)
    assert found.high == pytest.approx(0.2 + 0.24843, abs=1e-4)
    assert (found.seeds, found.is_sure) == (3, False)


def test_a_gain_in_accuracy_is_positive_where_it_is_higher() -> None:
    found = gain([0.9, 0.91, 0.92], [0.8, 0.81, 0.82], maximize=True)
    assert found is not None
    assert found.mean == pytest.approx(0.1)
    assert found.is_sure


def test_no_gain_of_one_seed_and_none_from_what_is_not_finite() -> None:
    assert gain([0.5], [0.6], maximize=False) is None
    assert gain([0.5, math.inf], [0.6, 0.6], maximize=False) is None


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (4, 2.776), (15, 2.131), (20, 2.086), (60, 2.000)])
def test_students_quantiles(freedom: int, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, rel=0.006)


def test_a_gain_in_words() -> None:
    sure, unsure = gain([1, 2, 3], [2, 3.1, 4], maximize=False), gain([1, 2, 3], [1.1, 1.9, 3.05], maximize=False)
    assert "+1.0333 (95 % +0.8899 .. +1.1768, 3 other seeds); on" in gain_in_words(sure, 3, "valid/loss")
    on_views = gain_in_words(sure, 3, "valid/loss", same_views=True)
    assert ".. +1.1768, 3 other seeds on the same augmented views); on the photos that chose it" in on_views
    assert "no more than seeds make" in gain_in_words(unsure, 3, "valid/loss")
    assert gain_in_words(None, 0, "valid/loss").startswith("gain: none, the default")
    assert "search.repeats=5 measures it" in gain_in_words(None, 2, "valid/loss")


# --- epochs ----------------------------------------------------------------------------------------------------------

CURVE = ((10, 1.0), (20, 0.5), (30, 0.42), (40, 0.40), (50, 0.41))


@pytest.mark.parametrize(("noise", "step"), [(0.0, 40), (0.025, 30), (0.11, 20), (1.0, 10)])
def test_a_plateau_begins_where_nothing_later_is_lower_by_more_than_noise(noise: float, step: int) -> None:
    assert plateau(CURVE, noise) == step


def test_the_plateau_of_nothing() -> None:
    assert plateau((), 0.1) == 0
    assert plateau(((5, math.inf), (10, 2.0)), 0.1) == 10


def test_the_advice_on_epochs_takes_its_noise_from_seeds() -> None:
    # sd of 0.39, 0.40, 0.41 is 0.01, so that the noise is 0.02 and step 30 is within 0.42
    found = epoch_advice(CURVE, [CURVE, ((10, 2.0), (20, 1.0))], [64, 256], [0.39, 0.40, 0.41])
    assert found is not None
    assert found.noise == pytest.approx(0.02)
    assert (found.step, found.last, found.from_seeds) == (30, 50, True)
    # 20 of 50 steps of the one, at 64 photos each, and none of 20 of the other, at 256
    assert found.wasted == pytest.approx(20 * 64 / (50 * 64 + 20 * 256))
    assert "gained nothing after step 30 of 50" in epochs_in_words(found)
    assert "15% of what the search trained (in photos)" in epochs_in_words(found)


def test_without_seeds_the_noise_is_a_hundredth_of_the_fall() -> None:
    found = epoch_advice(CURVE, [CURVE], [32], [0.4])
    assert found is not None
    assert found.noise == pytest.approx(0.006)
    assert (found.from_seeds, found.step) == (False, 40)
    assert epoch_advice((), [CURVE], [32], []) is None


def test_a_seed_that_diverged_is_no_noise() -> None:
    ended = [Outcome("ok", low, curve=((10, 1.0), (20, low))) for low in (0.39, 0.40, 0.41)]
    diverged = Outcome("diverged", None, "too high", curve=((10, 90.0),))
    repeats = Repeats((1, 2, 3, 4), (*ended, diverged), ())
    record = Record(0, {"optim.lr": 0.1}, Outcome("ok", 0.4, curve=CURVE))
    found = advice_on_epochs(composed("data=demo"), [record], 0, repeats)
    assert found is not None
    assert found.noise == pytest.approx(0.02)
    assert repeats.noise() == pytest.approx(0.03)


def test_seeds_of_trials_are_not_those_of_repeats(tmp_path: Path) -> None:
    class Trained:
        together = True

        def repeat(self, params: Any, seeds: Any) -> list[list[Outcome]]:
            return [[Outcome("ok", 0.5) for _ in seeds] for _ in params]

    records = [Record(n, {"seed": seed}, Outcome("ok", 0.5)) for n, seed in enumerate((7, 8, 10, 99))]
    trained: Any = Trained()
    found = repeat(composed("data=demo", "seed=7", "search.repeats=4"), trained, records, 2, tmp_path)
    assert found.seeds == (9, 11, 12, 13)


def test_skew_is_epsilon_squared() -> None:
    # groups of means 1, 2, 3; total 4.16 + .. by hand: SSB 4, SSW 6 * 0.01 = 0.06, MSW 0.06 / 3
    found = skew([2, 2, 3, 3, 4, 4], [0.9, 1.1, 1.9, 2.1, 2.9, 3.1])
    assert found is not None
    assert found.share == pytest.approx((4.06 - 0.06 - 2 * 0.02) / 4.06)
    assert found.trials == 6
    assert "explains 98% of the variance between 6 trials" in skew_in_words(found)


def test_epochs_that_explain_nothing_and_epochs_that_cannot() -> None:
    nothing = skew([2, 2, 3, 3], [1.0, 2.0, 1.0, 2.0])
    assert nothing is not None
    assert nothing.share == 0
    assert skew([2, 2, 2], [1.0, 2.0, 3.0]) is None
    assert skew([2, 3, 4], [1.0, 2.0, 3.0]) is None
    assert skew([2, 2, 3], [1.0, 2.0, math.inf]) is None


def test_a_default_outside_of_the_space_is_not_counted_in_the_skew() -> None:
    key, values = "trainer.max_epochs", {0: 9.0, 1: 1.0, 2: 1.2, 3: 2.0, 4: 2.2}

    def found(default: int) -> Skew | None:
        space = Space({key: Spread((), 2, 5, whole=True)}, {key: default})
        records = [Record(n, {key: e}, Outcome("ok", values[n])) for n, e in enumerate((default, 2, 2, 3, 3))]
        return epochs_skew(space, records, values)

    outside, inside = found(8), found(5)
    # of trials 1 to 4, by hand: the mean is 1.6, SST 1.04, SSW 4 * 0.01, MSW 0.04 / 2
    assert outside is not None
    assert inside is not None
    assert outside.share == pytest.approx((1.04 - 0.04 - 0.02) / 1.04)
    assert (outside.trials, inside.trials) == (4, 5)


@pytest.mark.parametrize(("maximize", "best"), [(False, 1), (True, 3)])
def test_the_best_is_the_first_of_equals(maximize: bool, best: int) -> None:
    assert best_number({0: 0.5, 1: 0.2, 2: 0.2, 3: 0.7, 4: 0.7}, maximize=maximize) == best


def test_importance_in_words() -> None:
    narrow = [Importance("optim.lr", 0.9, 0.7, 1.0), Importance("seed", 0.1, 0.0, 0.3)]
    wide = [Importance("optim.lr", 0.5, 0.0, 1.0), Importance("seed", 0.5, 0.0, 1.0)]
    assert importance_in_words(narrow) == "importance: optim.lr 0.90 (0.70 .. 1.00), seed 0.10 (0.00 .. 0.30)"
    assert importance_in_words(wide).endswith(": too few trials to say")
    assert importance_in_words([]).startswith("importance: too few trials to say")
    # of a key that hardly matters, it says nothing that it surely does not
    one = [Importance("optim.lr", 0.9, 0.2, 1.0), Importance("seed", 0.1, 0.0, 0.2)]
    assert importance_in_words(one).endswith(": too few trials to say")


@pytest.mark.parametrize(("low", "says"), [(0.7, True), (0.0, False)])
def test_whether_importances_say_something_is_kept_for_the_page(tmp_path: Path, low: float, says: bool) -> None:
    space = Space({"seed": Spread((1, 2))}, {"seed": 1})
    write_lessons(tmp_path, space, "valid/loss", [Importance("optim.lr", 0.9, low, 1.0)], ())
    assert json.loads((tmp_path / "search.json").read_text())["importances_say"] is says
    assert read_search(tmp_path).importances_say is says


# --- figures ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_spoils_no_figure() -> None:
    axes = Figure().add_subplot()
    curves = (CURVE, ((5, math.inf), (10, math.inf)), ((5, math.inf), (10, 3.0)), ((5, math.nan),))
    records = [Record(n, {}, Outcome("ok", 0.5, curve=curve)) for n, curve in enumerate(curves)]
    draw_curves(axes, records, best=0)
    assert axes.get_ylim()[1] == pytest.approx(1.2 * 2.0)  # the median of 1 and 3
    assert len(axes.get_lines()) == 2


# --- pruning ---------------------------------------------------------------------------------------------------------


def test_rungs_double_from_an_eighth_of_the_shortest_trial() -> None:
    assert rungs(80, 300) == (10, 20, 40, 80, 160)
    assert rungs(4, 4) == (1, 2)
    assert rungs(1, 1) == ()


def test_halving_stops_the_worse_half_and_never_the_default() -> None:
    reached = {0: 9.0, 1: 0.1, 2: 0.2, 3: 0.3, 4: math.nan}
    stopped = [number for number in reached if hopeless("halving", number, reached, maximize=False)]
    assert stopped == [4]  # and trial 0, the worst, goes on
    assert [n for n in reached if hopeless("halving", n, reached, maximize=True)] == [1, 4]
    assert not hopeless("halving", 1, {1: 5.0}, maximize=False)
    assert not hopeless("none", 3, reached, maximize=False)


def test_the_median_is_of_the_others_and_needs_four_of_them() -> None:
    reached = {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: 2.6}
    assert hopeless("median", 5, reached, maximize=False)  # the others' is 2.5
    assert not hopeless("median", 5, reached | {5: 2.4}, maximize=False)
    assert not hopeless("median", 5, {3: 1.0, 4: 1.0, 5: 9.0}, maximize=False)
    assert hopeless("median", 1, reached, maximize=True)
