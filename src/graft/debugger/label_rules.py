"""Rules over labels: how many of each class a model sees, and how many look wrong to it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graft.debugger.loss_rules import SAGEMAKER
from graft.debugger.records import EVAL, Records
from graft.debugger.rule import Rule, Verdict
from graft.diagnosis import Finding

IMBALANCE = 10.0  # ClassImbalance.threshold_imbalance
SAMPLES = 500  # ClassImbalance.samples
SUSPECTED = 0.1


def class_imbalance(records: Records) -> Verdict:
    """Photos of the largest class that training has seen, against those of the smallest."""
    labels = records.table("labels")
    counts = np.bincount(labels["label"], labels["count"], records.facts.num_classes)
    if counts.sum() < SAMPLES:
        return Verdict(0)
    present = np.flatnonzero(counts)
    small, large = int(present[counts[present].argmin()]), int(counts.argmax())
    ratio = counts[large] / counts[small]
    below = counts[present] < counts[large] / IMBALANCE
    if ratio <= IMBALANCE or records.facts.weighted:
        return Verdict(int(counts.sum()))
    return Verdict(
        int(counts.sum()),
        int(below.sum()),
        Finding(
            rule="class_imbalance",
            seen=f"class {large} was shown {ratio:.1f} times as often as class {small} (numbers of classes count from "
            f"0 in the order of their names); {below.sum()} classes are below a {IMBALANCE:g}th of the largest"
            f"{_who_suffers(records, present[below])}",
            why="a model that sees a class seldom gains by never guessing it",
            change="data.balance=loss, or sampler",
            key="data.balance",
            since_step=0,
        ),
    )


def _who_suffers(records: Records, small: NDArray[np.int64]) -> str:
    """How often the small classes are guessed wrong, and the others, in the last evaluation."""
    label, guess, _, _ = last_answers(records)
    of_small = np.isin(label, small)
    if not of_small.any() or of_small.all():
        return ""
    wrong = label != guess
    return f", wrong in {wrong[of_small].mean():.0%} of their validation photos against {wrong[~of_small].mean():.0%}"


def label_noise_suspected(records: Records) -> Verdict:
    """The share of photos that the model is sure are of another class, as sure as it is of that class's own."""
    label, guess, p_label, p_guess = last_answers(records)
    if len(label) < SAMPLES:
        return Verdict(0)
    suspected = suspects(label, guess, p_label, p_guess, records.facts.num_classes)
    share = float(suspected.mean())
    if share <= SUSPECTED:
        return Verdict(len(label))
    return Verdict(
        len(label),
        int(suspected.sum()),
        Finding(
            rule="label_noise_suspected",
            seen=f"{share:.0%} of the labels look wrong",
            why="",
            change="",
        ),
    )


def suspects(
    label: NDArray[np.int64],
    guess: NDArray[np.int64],
    p_label: NDArray[np.float64],
    p_guess: NDArray[np.float64],
    num_classes: int,
) -> NDArray[np.bool_]:
    """Which photos look mislabelled, bool [N], by confident learning (Northcutt et al. 2021, arXiv:1911.00068).

    The threshold of a class is the mean probability that its own photos are given; a photo that another class
    claims with more than that class's threshold, while its own label is below chance, is suspected.
    """
    photos = np.bincount(label, minlength=num_classes)
    threshold = np.bincount(label, p_label, num_classes) / np.maximum(photos, 1)
    threshold[photos == 0] = 1.0
    found: NDArray[np.bool_] = (guess != label) & (p_guess >= threshold[guess]) & (p_label < 1 / num_classes)
    return found


def last_answers(
    records: Records, mode: str = EVAL
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Label, guess, and the probability of each, [N], of the last evaluation."""
    answers = records.table("answers")
    of_mode = answers["mode"] == mode
    taken = answers["global_step"][of_mode]
    last = of_mode.copy()
    last[of_mode] = taken == taken.max(initial=-1)
    return answers["label"][last], answers["guess"][last], answers["p_label"][last], answers["p_guess"][last]


RULES = (
    Rule(
        "class_imbalance",
        "training shows every class about as often",
        class_imbalance,
        {"threshold_imbalance": IMBALANCE, "samples": SAMPLES},
        f"ClassImbalance of {SAGEMAKER}",
    ),
    Rule(
        "label_noise_suspected",
        "few photos look to the model as if they were of another class than their label says",
        label_noise_suspected,
        {"share": SUSPECTED, "samples": SAMPLES},
        "",
    ),
)
