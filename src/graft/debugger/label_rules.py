"""Rules over labels: how many of each class a model sees, and how many look wrong to it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from graft.debugger.loss_rules import SAGEMAKER
from graft.debugger.records import EVAL, TRAIN, Column, Records
from graft.debugger.rule import Rule, Verdict
from graft.diagnosis import Finding

IMBALANCE = 10.0  # ClassImbalance.threshold_imbalance
SAMPLES = 500  # ClassImbalance.samples
SUSPECTED = 0.05  # measured on dogs: 0.02 as they are, 0.11 to 0.14 with 20 % of the labels flipped
PHOTOS = 200
KNOWS = 0.5


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
    """How often the small classes are guessed wrong, and the others, in the best evaluation."""
    label, guess, _, _ = best_answers(records)
    of_small = np.isin(label, small)
    if not of_small.any() or of_small.all():
        return ""
    wrong = label != guess
    return f", wrong in {wrong[of_small].mean():.0%} of their validation photos against {wrong[~of_small].mean():.0%}"


def label_noise_suspected(records: Records) -> Verdict:
    """Photos that the model is sure are of another class: of valid/ at its best, of train/ at first."""
    shares = {
        split: noise_share(*answers, records.facts.num_classes)
        for split, answers in (("valid", best_answers(records)), ("train", first_answers(records)))
        if len(answers[0]) >= PHOTOS
    }
    judged = {split: share for split, share in shares.items() if share is not None}
    points = sum(len(a[0]) for a in (best_answers(records), first_answers(records))) if judged else 0
    high = {split: share for split, share in judged.items() if share > SUSPECTED}
    if not high:
        return Verdict(points)
    listed = " and ".join(f"{share:.0%} of those of {split}/" for split, share in high.items())
    return Verdict(
        points,
        len(high),
        Finding(
            rule="label_noise_suspected",
            seen=f"{listed} have a label that the model finds less likely than chance, while it is sure of another",
            why="wrong labels teach what is wrong, and in valid/ they hide which model is better",
            change="look through the likeliest mistakes in predictions.csv and mend their folders; until then "
            "optim.label_smoothing=0.1 and fewer trainer.max_epochs keep them from being learnt",
            key="optim.label_smoothing",
            since_step=0,
        ),
    )


def noise_share(
    label: NDArray[np.int64],
    guess: NDArray[np.int64],
    p_label: NDArray[np.float64],
    p_guess: NDArray[np.float64],
    num_classes: int,
) -> float | None:
    """Share of photos that look mislabelled; None where the model is wrong too often to be asked.

    By confident learning (Northcutt et al. 2021, arXiv:1911.00068): a photo is suspected where another class claims it
    with more than the mean probability that photos are given for their own. Stricter than there, its own label must be
    below chance, for two breeds that look alike are no mistake.
    """
    if not len(label) or (guess == label).mean() < KNOWS:
        return None
    suspected = (guess != label) & (p_guess >= p_label.mean()) & (p_label < 1 / num_classes)
    return float(suspected.mean())


Answers = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]


def best_answers(records: Records) -> Answers:
    """Label, guess, and the probability of each, [N], of the evaluation with the lowest loss.

    Later ones would not do: a model that overfits is sure of everything.
    """
    answers = records.table("answers")
    steps, loss = records.evaluations()
    if not len(loss) or not np.isfinite(loss).any():
        return _chosen(answers, np.zeros(len(answers["step"]), bool))
    return _chosen(answers, (answers["mode"] == EVAL) & (answers["global_step"] == steps[np.nanargmin(loss)]))


def first_answers(records: Records) -> Answers:
    """Likewise of the training steps from the middle of the first epoch to the end of the second.

    By then the model knows the classes, but not yet the photos.
    """
    answers, epoch = records.table("answers"), records.facts.steps_per_epoch
    step = answers["step"]
    return _chosen(answers, (answers["mode"] == TRAIN) & (step >= epoch / 2) & (step < 2 * epoch))


def _chosen(answers: Mapping[str, Column], rows: NDArray[np.bool_]) -> Answers:
    return answers["label"][rows], answers["guess"][rows], answers["p_label"][rows], answers["p_guess"][rows]


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
        {"share": SUSPECTED, "photos": PHOTOS, "least_accuracy": KNOWS},
        "Northcutt, Jiang, Chuang 2021 (https://arxiv.org/abs/1911.00068); the share is measured (docs/decisions/0011)",
    ),
)
