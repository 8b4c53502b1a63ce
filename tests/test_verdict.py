"""Ready to deploy? Each obstacle and each doubt, at its threshold; the answer is two sentences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from graft.diagnosis import Finding
from graft.report.verdict import Facts, Verdict, verdict, weak_classes
from tests.run_files import metrics

CLASSES: dict[str, float | None] = {f"class {number}": 0.8 for number in range(20)}
SOUND = Facts(
    state="finished",
    reason="",
    toy=False,
    metrics=metrics("valid", "test") | {"test/openings": 5, "data/undecodable": 10},
    photos={"train": 300, "test": 700},
    leaked=7,
    class_accuracy=CLASSES,
    findings=(),
)
FIGURE = (
    "the model is right for 80.0 % of 700 photos it never saw (95 % interval 77.0 to 83.0 %), "
    "where guessing gives 5.0 %"
)


def changed(**figures: float) -> dict[str, float]:
    return {**SOUND.metrics, **{name.replace("__", "/"): value for name, value in figures.items()}}


def test_a_sound_run_is_ready_also_at_every_threshold() -> None:
    found = verdict(replace(SOUND, class_accuracy={**CLASSES, "class 3": 0.4}))
    assert found == Verdict(
        "yes",
        f"Ready to deploy: {FIGURE}.",
        "Why: no photo checked is in two splits, test was opened sparingly, and its probabilities can be trusted.",
    )


EXPLODED = Finding("exploding_gradient", "the norm was 30, until it was shortened", "", "")
DOUBTS = [
    (
        {"metrics": changed(test__openings=6)},
        "test was opened 6 times with these photos, so its figure is flattered by choice",
    ),
    ({"leaked": 8}, "8 photos of test (1.1 %) are in another split too, which flatters the figure"),
    (
        {"metrics": changed(test__accuracy_low=0.7, test__accuracy_high=0.801, test__images=60)},
        "60 photos leave the accuracy uncertain by 5 points each way",
    ),
    ({"metrics": changed(test__ece_calibrated=0.06)}, "its probabilities are off by 6 points on average"),
    (
        {"class_accuracy": {**CLASSES, "class 3": 0.39}},
        "1 class is recognised less than half as often as the average, class 3 in 39 % of its photos",
    ),
    (
        {"class_accuracy": {**CLASSES, "class 3": 0.39, "class 4": 0.0, "class 5": None}},
        "2 classes are recognised less than half as often as the average, class 4 in 0 % of its photos",
    ),
    ({"metrics": changed(data__undecodable=11)}, "1.1 % of the photos could not be decoded"),
    ({"findings": (EXPLODED,), "clipped": True}, "exploding_gradient: the norm was 30, until it was shortened"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), DOUBTS)
def test_a_doubt_makes_a_reservation(change: dict[str, Any], reason: str) -> None:
    found = verdict(replace(SOUND, **change))
    assert found.answer == "reservations"
    assert found.reasons == f"Reservations: {reason}."
    assert found.figure.startswith("Ready to deploy, with reservations: the model is right for 80.0 %")


VALID = metrics("valid")
OBSTACLES = [
    ({"state": "unfinished"}, "the run is unfinished, so what stands here is not final"),
    ({"state": "failed", "reason": "it diverged"}, "the run is failed (it diverged), so what stands"),
    ({"state": ""}, "the run is not one of graft, so"),
    ({"toy": True}, "the photos were drawn by a program, so the figures say nothing of real ones"),
    ({"metrics": VALID}, "test was not opened, so there is no figure on unseen photos"),
    ({"metrics": changed(test__accuracy_low=0.05)}, "guessing gives 5.0 %, which the interval does not leave out"),
    ({"findings": (Finding("nan_or_inf", "a loss is NaN", "", ""),)}, "nan_or_inf: a loss is NaN"),
    ({"findings": (EXPLODED,)}, "exploding_gradient: the norm was 30"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), OBSTACLES)
def test_an_obstacle_says_no_whatever_doubts_there_are(change: dict[str, Any], reason: str) -> None:
    found = verdict(replace(SOUND, leaked=700, **change))
    assert found.answer == "no"
    assert found.figure.startswith("Not ready to deploy: the model is right for 80.0 %")
    assert found.reasons.startswith(f"Why: {reason}")
    assert "another split" not in found.reasons


def test_a_run_without_figures_says_that_there_are_none() -> None:
    found = verdict(replace(SOUND, state="unfinished", metrics={}, class_accuracy={}))
    assert found.figure == "Not ready to deploy: there is no accuracy yet."


def test_a_finding_that_leaves_the_weights_sound_is_no_obstacle() -> None:
    finding = Finding("overfit", "the gap grows", "", "")
    assert verdict(replace(SOUND, findings=(finding,))).answer == "yes"


def test_a_model_judged_on_valid_says_so() -> None:
    assert "700 photos that also chose its best epoch" in verdict(replace(SOUND, metrics=VALID)).figure


def test_weak_classes_come_weakest_first() -> None:
    accuracy = {"b": 0.1, "a": 0.1, "c": 0.0, "d": None, "e": 0.4}
    assert weak_classes(accuracy, 0.8) == [("c", 0.0), ("a", 0.1), ("b", 0.1)]
