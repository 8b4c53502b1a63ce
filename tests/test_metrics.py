"""The figures against numbers computed by hand."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_f1_score

from graft import metrics
from graft.errors import DataError
from graft.intervals import wilson_interval
from graft.metrics import (
    ConfusedPair,
    confused_pairs,
    fit_temperature,
    measure,
    per_class_accuracy,
)

NAMES = ["ash", "birch", "cedar", "dogwood"]

# Probabilities, so that every figure can be computed by hand. Predictions: 0, 1, 1, 1; nothing is
# or is called dogwood.
TABLE = torch.tensor(
    [[0.7, 0.1, 0.1, 0.1], [0.2, 0.5, 0.2, 0.1], [0.1, 0.6, 0.2, 0.1], [0.1, 0.4, 0.3, 0.2]],
    dtype=torch.float64,
).log()
LABELS = torch.tensor([0, 0, 1, 2])


def two_class(odds: float, right: int, wrong: int) -> tuple[Tensor, Tensor]:
    """Images that are called class 0 with these odds, of which `right` are."""
    logits = torch.tensor([[math.log(odds), 0.0]], dtype=torch.float64).repeat(right + wrong, 1)
    return logits, torch.tensor([0] * right + [1] * wrong)


def joined(*parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([logits for logits, _ in parts]), torch.cat([labels for _, labels in parts])


def sampled(n: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from the probabilities that they state."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=rng) * 2
    return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=rng)[:, 0]


# Intervals


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(85, 100, 0.7672, 0.9069), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0)],
)
def test_wilson_gives_published_values(correct: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 3, 7, 49, 10_007])
def test_wilson_holds_the_share_at_both_ends(n: int) -> None:
    assert wilson_interval(0, n)[0] == 0.0
    assert wilson_interval(n, n)[1] == 1.0


def test_wilson_refuses_nothing_and_the_impossible() -> None:
    with pytest.raises(DataError, match=r"^no images to measure$"):
        wilson_interval(0, 0)
    with pytest.raises(DataError, match=r"^correct: 5 of 4 images; accepted: 0 to 4$"):
        wilson_interval(5, 4)


def test_the_same_seed_gives_the_same_figures_and_another_seed_other_intervals() -> None:
    logits, labels = sampled(300, 5)
    first, again, other = (measure(logits, labels, temperature=1.5, seed=s) for s in (7, 7, 8))
    assert first == again
    changed = {key for key in first if first[key] != other[key]}
    assert changed == {"loss_low", "loss_high", "macro_f1_low", "macro_f1_high"}


def test_the_loss_interval_is_as_wide_as_the_normal_one_where_that_holds() -> None:
    logits, labels = sampled(3000, 6)
    figures = measure(logits, labels, temperature=1.0, seed=0)
    losses = -logits.double().log_softmax(dim=1)[torch.arange(3000), labels]
    half = 1.96 * float(losses.std()) / math.sqrt(3000)
    assert figures["loss_low"] == pytest.approx(figures["loss"] - half, abs=half * 0.15)
    assert figures["loss_high"] == pytest.approx(figures["loss"] + half, abs=half * 0.15)


def test_the_loss_interval_covers_the_truth_about_95_times_in_100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 300)
    rng, covered = np.random.default_rng(0), 0
    for seed in range(100):
        margin = -np.log(np.expm1(rng.exponential(size=200)))  # losses that are exponential with mean 1
        logits = torch.tensor(np.stack([margin, np.zeros(200)], axis=1))
        figures = measure(logits, torch.zeros(200, dtype=torch.long), temperature=1.0, seed=seed)
        covered += figures["loss_low"] <= 1.0 <= figures["loss_high"]
    assert 88 <= covered <= 99


def test_the_f1_interval_is_that_of_a_basic_bootstrap_with_torchmetrics() -> None:
    logits, labels = sampled(60, 12, seed=3)
    logits[:, 11] = -50  # a class that occurs rarely and is never predicted
    predicted, rng = logits.argmax(dim=1), torch.Generator().manual_seed(1)
    plain = []
    for _ in range(1500):
        i = torch.randint(60, (60,), generator=rng)
        plain.append(float(multiclass_f1_score(predicted[i], labels[i], 12, average="macro")))
    low, high = np.quantile(plain, (0.025, 0.975))
    figures = measure(logits, labels, temperature=1.0, seed=0)
    assert figures["macro_f1_low"] == pytest.approx(2 * figures["macro_f1"] - high, abs=0.02)
    assert figures["macro_f1_high"] == pytest.approx(2 * figures["macro_f1"] - low, abs=0.02)


# Figures


def test_measure_gives_the_figures_computed_by_hand() -> None:
    figures = measure(TABLE, LABELS, temperature=1.0, seed=0)
    assert figures["loss"] == pytest.approx(-math.log(0.7 * 0.2 * 0.6 * 0.3) / 4)
    assert figures["accuracy"] == 0.5
    assert (figures["accuracy_low"], figures["accuracy_high"]) == wilson_interval(2, 4)
    assert figures["top5_accuracy"] == 1.0  # of four classes
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 2 / 4 + 0) / 3)  # dogwood does not occur
    # Confidences 0.7 right, 0.5 wrong, 0.6 right, 0.4 wrong lie in four bins.
    assert figures["ece"] == pytest.approx((0.3 + 0.5 + 0.4 + 0.4) / 4)
    assert figures["images"] == 4.0


def test_measure_returns_exactly_these_plain_floats() -> None:
    figures = measure(TABLE.half(), LABELS.int(), temperature=2.0, seed=0)
    assert list(figures) == [
        *("loss", "loss_low", "loss_high", "accuracy", "accuracy_low", "accuracy_high", "top5_accuracy"),
        *("macro_f1", "macro_f1_low", "macro_f1_high", "ece", "ece_calibrated", "images"),
    ]
    assert {type(value) for value in figures.values()} == {float}


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    logits = torch.eye(4)[[0, 0, 3]]
    figures = measure(logits, torch.tensor([0, 0, 0]), temperature=1.0, seed=0)
    assert figures["macro_f1"] == pytest.approx((4 / 5 + 0) / 2)


def test_top5_counts_the_five_largest() -> None:
    logits = torch.arange(7.0).repeat(4, 1)  # the five largest are 2..6
    figures = measure(logits, torch.tensor([6, 2, 1, 0]), temperature=1.0, seed=0)
    assert figures["top5_accuracy"] == 0.5
    assert figures["accuracy"] == 0.25


def test_without_an_error_every_interval_ends_at_one() -> None:
    figures = measure(torch.eye(6) * 9, torch.arange(6), temperature=1.0, seed=0)
    assert figures["accuracy"] == figures["accuracy_high"] == 1.0
    assert figures["macro_f1"] == figures["macro_f1_low"] == figures["macro_f1_high"] == 1.0
    assert figures["loss_low"] == pytest.approx(figures["loss"])
    assert figures["loss_high"] == pytest.approx(figures["loss"])


def test_calibration_error_before_and_after_the_temperature_by_hand() -> None:
    # Confidence 9/10, 6 of 10 right; 25/26, 9 of 10 right. T = 2 takes the root of the odds: 3/4, 5/6.
    logits, labels = joined(two_class(9, 6, 4), two_class(25, 9, 1))
    figures = measure(logits, labels, temperature=2.0, seed=0)
    assert figures["ece"] == pytest.approx((abs(0.6 - 0.9) + abs(0.9 - 25 / 26)) / 2)
    assert figures["ece_calibrated"] == pytest.approx((abs(0.6 - 0.75) + abs(0.9 - 5 / 6)) / 2)


def test_a_confidence_of_one_shares_the_last_bin() -> None:
    logits, labels = joined(two_class(1e200, 0, 1), two_class(19, 1, 0))
    figures = measure(logits, labels, temperature=1.0, seed=0)
    assert figures["ece"] == pytest.approx(abs(0.5 - (1 + 0.95) / 2))


def test_logits_between_0_and_1_are_not_taken_for_probabilities() -> None:
    figures = measure(torch.eye(2), torch.arange(2), temperature=1.0, seed=0)
    assert figures["ece"] == pytest.approx(1 - math.e / (1 + math.e))


def test_the_calibration_error_is_that_of_torchmetrics() -> None:
    logits, labels = sampled(500, 8)
    expected = multiclass_calibration_error(logits.double().softmax(dim=1), labels, 8, n_bins=15)
    assert measure(logits, labels, temperature=1.0, seed=0)["ece"] == pytest.approx(float(expected))


def test_portions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = sampled(50, 7)
    whole, temperature = measure(logits, labels, temperature=1.5, seed=0), fit_temperature(logits, labels)
    monkeypatch.setattr(metrics, "ROWS", 3)
    assert measure(logits, labels, temperature=1.5, seed=0) == pytest.approx(whole)
    assert fit_temperature(logits, labels) == pytest.approx(temperature)


# Temperature


@pytest.mark.parametrize(
    ("odds", "right", "wrong", "temperature"),
    [
        (9, 3, 1, 2.0),
        (3, 9, 1, 0.5),
        (3, 3, 1, 1.0),
        (3.0**15, 3, 1, 15.0),
        (3.0**0.06, 3, 1, 0.06),
    ],
)
def test_temperature_makes_the_stated_odds_the_observed_ones(
    odds: float, right: int, wrong: int, temperature: float
) -> None:
    assert fit_temperature(*two_class(odds, right, wrong)) == pytest.approx(temperature, rel=1e-4)


def test_logits_times_three_have_a_temperature_of_three() -> None:
    logits, labels = sampled(4000, 10)
    assert fit_temperature(logits, labels) == pytest.approx(1.0, abs=0.06)
    assert fit_temperature(logits * 3, labels) == pytest.approx(3 * fit_temperature(logits, labels), rel=1e-4)


@pytest.mark.parametrize(
    ("scale", "labels", "bound"),
    [
        (1.0, [0, 1, 2], 0.05),  # no error: the colder the better
        (1.0, [1, 2, 0], 20.0),  # nothing but errors: the hotter the better
        (1e4, [1, 2, 0], 20.0),
        (1e4, [0, 1, 0], 20.0),
    ],
)
def test_temperature_stops_at_its_bounds(scale: float, labels: list[int], bound: float) -> None:
    assert fit_temperature(torch.eye(3) * scale, torch.tensor(labels)) == pytest.approx(bound, rel=0.01)


def test_temperature_stays_where_any_is_as_good() -> None:
    assert fit_temperature(torch.eye(3) * 1e4, torch.arange(3)) == 1.0
    assert fit_temperature(torch.zeros(3, 3), torch.arange(3)) == 1.0


def test_temperature_can_be_fitted_where_gradients_are_off() -> None:
    with torch.inference_mode():
        logits, labels = two_class(9, 3, 1)
        assert fit_temperature(logits, labels) == pytest.approx(2.0, rel=1e-4)
    with torch.no_grad():
        assert fit_temperature(logits, labels) == pytest.approx(2.0, rel=1e-4)


def test_nothing_that_came_in_is_changed() -> None:
    logits, labels = sampled(40, 5)
    logits.requires_grad_()
    before = logits.detach().clone(), labels.clone()
    fit_temperature(logits, labels)
    measure(logits, labels, temperature=2.0, seed=0)
    confused_pairs(logits, labels, list("abcde"))
    assert torch.equal(logits.detach(), before[0])
    assert torch.equal(labels, before[1])
    assert logits.grad is None


# Classes


def test_per_class_accuracy_is_none_without_images() -> None:
    expected = {"ash": 0.5, "birch": 1.0, "cedar": 0.0, "dogwood": None}
    assert per_class_accuracy(TABLE, LABELS, NAMES) == expected


def test_confused_pairs_are_sorted_by_count_then_names() -> None:
    said = torch.eye(4)[[1, 1, 0, 3, 0, 2, 0, 0]]
    labels = torch.tensor([2, 2, 3, 0, 1, 2, 0, 3])
    assert confused_pairs(said, labels, NAMES) == [
        ConfusedPair("cedar", "birch", 2, 2 / 3),
        ConfusedPair("dogwood", "ash", 2, 1.0),
        ConfusedPair("ash", "dogwood", 1, 0.5),
        ConfusedPair("birch", "ash", 1, 1.0),
    ]
    assert [pair.true for pair in confused_pairs(said, labels, NAMES[::-1], top=2)] == ["ash", "birch"]


def test_names_must_be_as_many_as_classes() -> None:
    with pytest.raises(DataError, match=r"^class_names: 3 names; accepted: 4, one per logit$"):
        per_class_accuracy(TABLE, LABELS, NAMES[:3])


# Refusals


@pytest.mark.parametrize(
    "ask",
    [
        fit_temperature,
        partial(measure, temperature=1.0, seed=0),
        partial(per_class_accuracy, class_names=NAMES),
        partial(confused_pairs, class_names=NAMES),
    ],
)
def test_an_empty_split_is_refused(ask: partial[object]) -> None:
    with pytest.raises(DataError, match=r"^no images to measure$"):
        ask(torch.empty(0, 4), torch.empty(0, dtype=torch.long))


@pytest.mark.parametrize(
    ("logits", "labels", "temperature", "text"),
    [
        (TABLE, LABELS[:3], 1.0, r"logits: torch.float64 \[4, 4\] with labels \[3\]; accepted: floating"),
        (TABLE.long(), LABELS, 1.0, r"logits: torch.int64 \[4, 4\]"),
        (TABLE, LABELS + 2, 1.0, r"labels: torch.int64 from 2 to 4; accepted: integers 0 to 3"),
        (TABLE, LABELS - 1, 1.0, r"labels: torch.int64 from -1 to 1; accepted: integers 0 to 3"),
        (TABLE[:, :1], LABELS, 1.0, r"logits: 1 classes; accepted: 2 or more"),
        (TABLE / torch.tensor([0.0, 1, 1, 1]), LABELS, 1.0, r"logits: not finite for 4 of 4 images"),
        (TABLE, LABELS, 0.0, r"temperature: 0.0; accepted: a finite number above 0"),
        (TABLE, LABELS, math.nan, r"temperature: nan; accepted"),
    ],
)
def test_measure_refuses_what_it_cannot_measure(logits: Tensor, labels: Tensor, temperature: float, text: str) -> None:
    with pytest.raises(DataError, match="^" + text):
        measure(logits, labels, temperature=temperature, seed=0)
