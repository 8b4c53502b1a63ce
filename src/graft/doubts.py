"""When an answer is doubted: thresholds fitted on valid, and how often they are right.

`unsure`: the calibrated probability is below the threshold that best tells right answers from wrong ones
(Youden's J, 1950). `not_one_of_these`: the photo is further from the training photos (graft.novelty) than all but
REFUSED of valid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graft.artifacts import Doubts
from graft.novelty import Novelty, fit_novelty

REFUSED = 0.05  # of photos that are one of the classes: the field's convention, FPR at 95 % TPR
HELD_OUT = 6  # every sixth class is left out to measure how often a photo of none of the classes is refused
FEWEST_CLASSES = 12  # that this is measured with: two are held out then
FEWEST_FOR_DISTANCES = 3  # classes: two are told apart along a line, on which every photo has the place of one of them
REFERENCE_PHOTOS = 10_000  # of train that distances are told from: 80 MB at 2,048 numbers

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Features:
    """Of some photos: values float32 [N, D], labels int64 [N]."""

    values: Floats
    labels: Labels

    def where(self, mask: NDArray[np.bool_]) -> Features:
        """Some of them."""
        return Features(self.values[mask], self.labels[mask])


def fit_probability(probability: Floats, right: NDArray[np.bool_]) -> float:
    """The threshold below which an answer is unsure.

    It maximises P(below | wrong) - P(below | right); 0 where no answer is wrong, or none is right.

    Args:
        probability: [N], of the likeliest class, calibrated.
        right: [N], whether it is the photo's.
    """
    if right.all() or not right.any():
        return 0.0
    order = np.argsort(probability, kind="stable")
    sorted_right = right[order]
    gain = np.cumsum(~sorted_right) / (~right).sum() - np.cumsum(sorted_right) / right.sum()
    best = int(np.argmax(gain))
    if gain[best] <= 0:
        return 0.0
    values = probability[order]
    # Halfway to the next value: a threshold at a photo's own value would hang on its last bit.
    following = values[best + 1] if best + 1 < len(values) else 1.0
    return float((values[best] + following) / 2)


def fit_distance(distances: Floats) -> float:
    """The distance that REFUSED of these photos lie beyond."""
    return float(np.quantile(distances, 1 - REFUSED))


def rates(doubts: Doubts, probability: Floats, right: NDArray[np.bool_], distances: Floats | None) -> dict[str, float]:
    """Shares 0..1 of one split.

    `unsure_right` of the right answers and `unsure_wrong` of the wrong ones are unsure, `sure_right` of the sure
    answers are right, `refused` of the photos are not_one_of_these. What none of the photos tells is left out.
    """
    unsure = probability < doubts.probability
    shares = {
        "unsure_right": unsure[right],
        "unsure_wrong": unsure[~right],
        "sure_right": right[~unsure],
        "refused": np.zeros(0) if distances is None or doubts.distance is None else distances > doubts.distance,
    }
    return {name: float(hits.mean()) for name, hits in shares.items() if len(hits)}


def held_out_rates(train: Features, valid: Features) -> dict[str, float]:
    """How often photos of unknown classes are refused, measured with a sixth of the classes left out.

    Returns:
        `refused`: share 0..1 of valid's photos of classes that were left out; empty with too few classes.
    """
    classes = np.unique(train.labels)
    if len(classes) < FEWEST_CLASSES:
        return {}
    out = classes[::HELD_OUT]
    known, unknown = valid.where(~np.isin(valid.labels, out)), valid.where(np.isin(valid.labels, out))
    if not len(known.labels) or not len(unknown.labels):
        return {}
    seen = train.where(~np.isin(train.labels, out))
    novelty = fit_novelty(seen.values, seen.labels)
    limit = fit_distance(novelty.distances(known.values))
    return {"refused": float((novelty.distances(unknown.values) > limit).mean())}


def fit_doubts(
    probability: Floats, right: NDArray[np.bool_], train: Features | None, valid: Features | None
) -> tuple[Doubts, Novelty | None]:
    """Thresholds, with their rates on valid and on classes left out.

    Args:
        probability: [N], of the likeliest class of each valid photo, calibrated.
        right: [N], whether it is the photo's.
        train: of at most REFERENCE_PHOTOS photos; None where features are not kept, and nothing tells distances.
        valid: of all its photos, in the order of `probability`; likewise.

    Returns:
        No distance and no novelty where there are none, or fewer than FEWEST_FOR_DISTANCES classes.
    """
    limit = fit_probability(probability, right)
    if train is None or valid is None or len(np.unique(train.labels)) < FEWEST_FOR_DISTANCES:
        shares = rates(Doubts(limit, None, {}), probability, right, None)
        return Doubts(limit, None, _named("valid", shares)), None
    novelty = fit_novelty(train.values, train.labels)
    distances = novelty.distances(valid.values)
    doubts = Doubts(limit, fit_distance(distances), {})
    measured = _named("valid", rates(doubts, probability, right, distances))
    measured |= _named("held_out", held_out_rates(train, valid))
    return Doubts(limit, doubts.distance, measured), novelty


def _named(split: str, shares: dict[str, float]) -> dict[str, float]:
    return {f"{split}/{name}": value for name, value in shares.items()}
