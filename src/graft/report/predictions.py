"""What predictions.csv says: calibration, the most confused pairs with their photos, the worst mistakes. Pure."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from graft.intervals import wilson_interval

BINS = 15  # equal ones of the confidence, as the calibration error of graft.metrics has them


@dataclass(frozen=True)
class Prediction:
    """One photo and what the model says of it.

    Attributes:
        path: path or URL of the photo.
        split: valid or test.
        label: its class.
        guess: the likeliest class.
        confidence: calibrated probability of that, 0..1.
        rank: place of the label among the likeliest classes, from 1; None where it is not among the first five.
    """

    path: str
    split: str
    label: str
    guess: str
    confidence: float
    rank: int | None

    @property
    def right(self) -> bool:
        """Whether the likeliest class is the label."""
        return self.guess == self.label


@dataclass(frozen=True)
class Bin:
    """Photos whose confidence is nearly the same.

    Attributes:
        confidence: their mean, 0..1.
        accuracy: the share that is classified right.
        low: of its 95 % interval (Wilson).
        high: likewise.
        photos: how many.
    """

    confidence: float
    accuracy: float
    low: float
    high: float
    photos: int


@dataclass(frozen=True)
class Pair:
    """Photos of class `label` that were taken for class `guess`.

    Attributes:
        label: the class they are of.
        guess: the class they were taken for.
        photos: those of the label's class, whatever was said of them.
        mistaken: the photos in question, the surest first.
        likes: photos of `guess` that were recognised, the surest first.
    """

    label: str
    guess: str
    photos: int
    mistaken: tuple[Prediction, ...]
    likes: tuple[Prediction, ...]


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """The rows of predictions.csv.

    Raises:
        ValueError: it is not such a file.
    """
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        try:
            return tuple(_prediction(row) for row in csv.DictReader(file))
        except (KeyError, TypeError) as error:
            raise ValueError(f"a column is missing: {error}") from error


def calibration(predictions: Iterable[Prediction]) -> list[Bin]:
    """Confidence against accuracy in BINS equal bins, empty ones left out."""
    bins: defaultdict[int, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        bins[min(int(prediction.confidence * BINS), BINS - 1)].append(prediction)
    found = []
    for _, inside in sorted(bins.items()):
        right, count = sum(p.right for p in inside), len(inside)
        low, high = wilson_interval(right, count)
        mean = sum(p.confidence for p in inside) / count
        found.append(Bin(mean, right / count, low, high, count))
    return found


def confused(predictions: Sequence[Prediction], most: int) -> list[Pair]:
    """The `most` most frequent mistakes, the most frequent first; equally frequent ones by name."""
    mistakes: defaultdict[tuple[str, str], list[Prediction]] = defaultdict(list)
    photos: defaultdict[str, int] = defaultdict(int)
    recognised: defaultdict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        photos[prediction.label] += 1
        if prediction.right:
            recognised[prediction.label].append(prediction)
        else:
            mistakes[prediction.label, prediction.guess].append(prediction)
    chosen = sorted(mistakes, key=lambda pair: (-len(mistakes[pair]), pair))[:most]
    return [
        Pair(label, guess, photos[label], _surest(mistakes[label, guess]), _surest(recognised[guess]))
        for label, guess in chosen
    ]


def worst(predictions: Iterable[Prediction], most: int) -> tuple[Prediction, ...]:
    """The mistakes that the model was surest of."""
    return _surest([p for p in predictions if not p.right])[:most]


def _surest(predictions: Iterable[Prediction]) -> tuple[Prediction, ...]:
    return tuple(sorted(predictions, key=lambda p: (-p.confidence, p.path)))


def _prediction(row: dict[str, str]) -> Prediction:
    guesses = [row[f"class_{place}"] for place in range(1, 6)]
    rank = guesses.index(row["label"]) + 1 if row["label"] in guesses else None
    return Prediction(row["path"], row["split"], row["label"], guesses[0], float(row["probability_1"]), rank)
