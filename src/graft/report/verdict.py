"""Ready to deploy? The answer in two sentences, with its reasons. Pure; docs/report.md explains the thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from graft.diagnosis import Finding

# What speaks against deploying is a fact. What only makes the figure less sure is a threshold, and these are they.
OPENINGS = 5  # of test: whoever looks more often has begun to choose by it
HALF_WIDTH = 0.05  # of the accuracy's 95 % interval: fewer than about 250 photos at 80 %
CALIBRATION = 0.05  # expected calibration error: a probability says 5 points too much or too little on average
LEAKED = 0.01  # of the photos of test that are in another split too
WEAK_CLASS = 0.5  # a class recognised less than half as often as the photos on average
DAMAGED = 0.01  # of all photos that could not be decoded
EXPLODING = "exploding_gradient"
# Debugger's rules that say the weights themselves are not sound.
UNSOUND = ("nan_or_inf", EXPLODING)


@dataclass(frozen=True)
class Facts:
    """What the verdict rests on.

    Attributes:
        state: finished, unfinished or failed; empty where there is no run.
        reason: why it did not finish.
        absent: why there is none, of a search without a model.
        toy: whether the photos were drawn by a program.
        metrics: flat metrics of the run.
        photos: split -> how many.
        leaked: photos of test that are in another split too.
        class_accuracy: of the split that was judged; None for a class without photos.
        findings: of the debugger and the profiler.
        clipped: whether long gradients were shortened.
    """

    state: str
    reason: str
    toy: bool
    metrics: Mapping[str, float]
    photos: Mapping[str, int]
    leaked: int
    class_accuracy: Mapping[str, float | None]
    findings: Sequence[Finding]
    clipped: bool = False
    absent: str = ""


@dataclass(frozen=True)
class Verdict:
    """The answer.

    Attributes:
        answer: yes, reservations or no.
        figure: the first sentence: the answer and the figure.
        reasons: the second sentence.
    """

    answer: str
    figure: str
    reasons: str


def verdict(facts: Facts) -> Verdict:
    """Whether a model is ready to deploy: `no` with an obstacle, `reservations` with a doubt, else `yes`.

    Obstacles: the run is not finished, the photos are drawn, test was not opened, the accuracy's interval reaches down
    to chance, or a rule says that the weights are not sound. How accurate a model must be is for its user to say.
    """
    obstacles, doubts = list(_obstacles(facts)), list(_doubts(facts))
    if obstacles:
        # an obstacle alone decides; the doubts stand in the sections below
        return Verdict("no", f"Not ready to deploy: {_figure(facts)}.", f"{_listed('Why', obstacles)}.")
    if doubts:
        answer = "Ready to deploy, with reservations"
        return Verdict("reservations", f"{answer}: {_figure(facts)}.", f"{_listed('Reservations', doubts)}.")
    sound = "no photo checked is in two splits, test was opened sparingly, and its probabilities can be trusted"
    return Verdict("yes", f"Ready to deploy: {_figure(facts)}.", f"Why: {sound}.")


def judged_split(metrics: Mapping[str, float]) -> str | None:
    """The split that a model is judged by: test where it was opened."""
    return next((split for split in ("test", "valid") if f"{split}/accuracy" in metrics), None)


def percent(share: float) -> str:
    """`80.6 %`."""
    return f"{share * 100:.1f} %"


def _figure(facts: Facts) -> str:
    split, m = judged_split(facts.metrics), facts.metrics
    if split is None:
        return "there is no accuracy yet"
    seen = "photos it never saw" if split == "test" else "photos that also chose its best epoch"
    interval = f"95 % interval {m[f'{split}/accuracy_low'] * 100:.1f} to {percent(m[f'{split}/accuracy_high'])}"
    right = f"right for {percent(m[f'{split}/accuracy'])} of {m[f'{split}/images']:.0f} {seen} ({interval})"
    chance = f", where guessing gives {percent(_chance(facts))}" if facts.class_accuracy else ""
    return f"the model is {right}{chance}"


def _obstacles(facts: Facts) -> Iterator[str]:
    if facts.absent:
        yield facts.absent
    elif facts.state != "finished":
        why = f" ({facts.reason})" if facts.reason else ""
        yield f"the run is {facts.state or 'not one of graft'}{why}, so what stands here is not final"
    if facts.toy:
        yield "the photos were drawn by a program, so the figures say nothing of real ones"
    split = judged_split(facts.metrics)
    if split == "valid":
        yield "test was not opened, so there is no figure on unseen photos"
    if split and facts.class_accuracy and facts.metrics[f"{split}/accuracy_low"] <= _chance(facts):
        yield f"guessing gives {percent(_chance(facts))}, which the interval does not leave out"
    yield from _unsound(facts, harmless=False)


def _doubts(facts: Facts) -> Iterator[str]:
    m, split = facts.metrics, judged_split(facts.metrics)
    if split is None:
        return
    if (openings := m.get("test/openings", 0)) > OPENINGS:
        yield f"test was opened {openings:.0f} times with these photos, so its figure is flattered by choice"
    if (share := facts.leaked / max(1, facts.photos.get("test", 0))) > LEAKED:
        yield f"{facts.leaked} photos of test ({percent(share)}) are in another split too, which flatters the figure"
    if (half := (m[f"{split}/accuracy_high"] - m[f"{split}/accuracy_low"]) / 2) > HALF_WIDTH:
        yield f"{m[f'{split}/images']:.0f} photos leave the accuracy uncertain by {half * 100:.0f} points each way"
    if (error := m[f"{split}/ece_calibrated"]) > CALIBRATION:
        yield f"its probabilities are off by {error * 100:.0f} points on average"
    if weak := weak_classes(facts.class_accuracy, m[f"{split}/accuracy"]):
        name, accuracy = weak[0]
        classes = "1 class is" if len(weak) == 1 else f"{len(weak)} classes are"
        least = f"{name} in {accuracy * 100:.0f} % of its photos"
        yield f"{classes} recognised less than half as often as the average, {least}"
    if (share := m.get("data/undecodable", 0) / max(1, sum(facts.photos.values()))) > DAMAGED:
        yield f"{percent(share)} of the photos could not be decoded"
    yield from _unsound(facts, harmless=True)


def _unsound(facts: Facts, *, harmless: bool) -> Iterator[str]:
    """What rules say against the weights; what clipping has kept from them is harmless, and no more than a doubt."""
    for finding in facts.findings:
        clipped = facts.clipped and finding.rule == EXPLODING
        if finding.rule in UNSOUND and clipped == harmless:
            yield f"{finding.rule}: {finding.seen}"


def weak_classes(accuracy: Mapping[str, float | None], mean: float) -> list[tuple[str, float]]:
    """Classes recognised less than WEAK_CLASS times as often as photos are on average, the weakest first."""
    known = [(name, share) for name, share in accuracy.items() if share is not None and share < WEAK_CLASS * mean]
    return sorted(known, key=lambda pair: (pair[1], pair[0]))


def _chance(facts: Facts) -> float:
    """What guessing among the classes gives."""
    return 1 / len(facts.class_accuracy)


def _listed(word: str, reasons: Sequence[str]) -> str:
    return f"{word}: {'; '.join(reasons)}"
