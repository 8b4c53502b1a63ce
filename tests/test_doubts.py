"""When answers are doubted: thresholds with hand-computed values, distances on points whose place is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from graft.artifacts import Doubts
from graft.doubts import Features, fit_distance, fit_doubts, fit_probability, held_out_rates, rates
from graft.errors import RunError
from graft.novelty import Novelty, fit_novelty, read_novelty, write_novelty

RIGHT = np.array([False, False, True, False, True, True])
PROBABILITY = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.9], np.float32)


def clusters(classes: int, per_class: int, seed: int) -> Features:
    """Photos of a class lie around a corner of their own, 16 numbers each."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    corners = np.eye(16, dtype=np.float32)[:classes] * 10
    return Features(corners[labels] + rng.standard_normal((len(labels), 16)).astype(np.float32), labels)


def test_the_threshold_of_probability_has_the_largest_j() -> None:
    # Below 0.25 lie two of the three wrong answers and no right one, J = 2/3; below 0.75 all wrong ones, J = 1/3.
    right = np.array([False, False, True, True, False, True])
    assert fit_probability(PROBABILITY, right) == pytest.approx(0.25)


@pytest.mark.parametrize("right", [np.ones(6, bool), np.zeros(6, bool)])
def test_nothing_is_unsure_where_probability_tells_nothing(right: NDArray[np.bool_]) -> None:
    assert fit_probability(PROBABILITY, right) == 0.0


def test_a_probability_that_is_higher_where_answers_are_wrong_is_no_reason_to_doubt() -> None:
    assert fit_probability(PROBABILITY, PROBABILITY < 0.35) == 0.0


def test_rates_are_shares_of_what_their_names_say() -> None:
    doubts = Doubts(probability=0.35, distance=0.5, rates={})
    distances = np.array([0.1, 0.2, 0.3, 0.6, 0.4, 0.5], np.float32)
    assert rates(doubts, PROBABILITY, RIGHT, distances) == pytest.approx(
        {"unsure_right": 1 / 3, "unsure_wrong": 2 / 3, "sure_right": 2 / 3, "refused": 1 / 6}
    )
    assert rates(doubts, PROBABILITY, np.ones(6, bool), None) == {"unsure_right": 0.5, "sure_right": 1.0}


def test_the_distance_lets_95_of_100_through() -> None:
    distances = np.linspace(0, 1, 101, dtype=np.float32)
    assert fit_distance(distances) == pytest.approx(0.95)


def test_distance_is_one_minus_the_cosine_to_the_nearest_mean() -> None:
    means = np.array([[1, 0], [0, 1]], np.float32)
    novelty = Novelty(np.array([1, 1], np.float32), np.eye(2, dtype=np.float32), means)
    features = np.array([[3, 1], [1, 9], [2, 2], [0, 1]], np.float32)
    assert novelty.distances(features) == pytest.approx([0, 0, 1 - 0.5**0.5, 1], abs=1e-6)


def test_a_photo_where_all_photos_lie_on_average_is_far_from_each_class() -> None:
    novelty = Novelty(np.zeros(2, np.float32), np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32))
    assert novelty.distances(np.zeros((1, 2), np.float32)) == pytest.approx([1])


def test_photos_of_unknown_classes_are_refused_and_known_ones_are_not() -> None:
    train, valid = clusters(14, 40, seed=0), clusters(14, 20, seed=1)
    assert held_out_rates(train, valid)["refused"] > 0.95
    # Of 14 classes 0, 6 and 12 are left out; of 11 none is.
    few = train.where(train.labels < 11)
    assert held_out_rates(few, valid) == {}


def test_doubts_without_features_know_probabilities_alone() -> None:
    doubts, novelty = fit_doubts(PROBABILITY, RIGHT, None, None)
    assert novelty is None
    assert doubts.distance is None
    assert set(doubts.rates) == {"valid/unsure_right", "valid/unsure_wrong", "valid/sure_right"}


def test_doubts_with_features_say_how_many_photos_of_valid_are_refused() -> None:
    train, valid = clusters(14, 40, seed=0), clusters(14, 20, seed=1)
    probability = np.linspace(0.1, 1, len(valid.labels)).astype(np.float32)
    doubts, novelty = fit_doubts(probability, probability > 0.4, train, valid)
    assert novelty is not None
    assert doubts.rates["valid/refused"] == pytest.approx(0.05, abs=1 / len(valid.labels))
    assert doubts.rates["valid/unsure_wrong"] == 1.0
    assert doubts.rates["held_out/refused"] > 0.95


def test_of_two_classes_no_distance_is_told() -> None:
    train, valid = clusters(2, 40, seed=0), clusters(2, 20, seed=1)
    probability = np.linspace(0.5, 1, len(valid.labels)).astype(np.float32)
    doubts, novelty = fit_doubts(probability, probability > 0.6, train, valid)
    assert (doubts.distance, novelty) == (None, None)
    assert set(doubts.rates) == {"valid/unsure_right", "valid/unsure_wrong", "valid/sure_right"}


@pytest.mark.parametrize("classes", [3, 4])
def test_of_three_classes_and_more_what_is_none_of_them_is_far(classes: int) -> None:
    train, valid = clusters(classes, 40, seed=0), clusters(classes, 20, seed=1)
    probability = np.linspace(0.5, 1, len(valid.labels)).astype(np.float32)
    doubts, novelty = fit_doubts(probability, probability > 0.6, train, valid)
    assert doubts.distance is not None
    assert novelty is not None
    away = np.tile(train.values.mean(axis=0), (50, 1)) + np.random.default_rng(2).standard_normal((50, 16))
    assert 0 < doubts.distance < 1
    assert (novelty.distances(away.astype(np.float32)) > doubts.distance).mean() > 0.5


def test_novelty_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    train = clusters(4, 30, seed=0)
    novelty = fit_novelty(train.values, train.labels)
    write_novelty(tmp_path, novelty)
    again = read_novelty(tmp_path)
    assert np.array_equal(again.distances(train.values), novelty.distances(train.values))
    (tmp_path / "novelty.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"novelty\.safetensors cannot be read .*; copy the bundle again"):
        read_novelty(tmp_path)
