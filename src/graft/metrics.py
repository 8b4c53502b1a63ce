"""How good a model is: figures with 95 % intervals, calibration, confusion.

All measures are functions of logits and labels of one split, are computed on the CPU, and give the
same floats for the same seed. torchmetrics computes what it has; Lightning has loaded it already
wherever a run evaluates, so the import here costs a run nothing (alone: about 1.3 s beside torch).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_stat_scores,
)

from graft.errors import DataError
from graft.intervals import wilson_interval

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
CALIBRATION_BINS = 15
TEMPERATURES = (0.05, 20.0)
ROWS = 8192  # images per step: float64 copies stay below 10 MB at 133 classes, whatever the split's size


@dataclass(frozen=True)
class ConfusedPair:
    """Images of class `true` that were taken for class `predicted`; share: of all images of `true`, 0..1."""

    true: str
    predicted: str
    count: int
    share: float


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T that minimises the cross-entropy of logits / T (Guo et al. 2017), by LBFGS on log T.

    T is kept in 0.05..20: without bounds, a split that is classified without an error has its minimum
    at T = 0, and one that is classified worse than by chance at infinity. 1 means that the logits are
    calibrated as they are, above 1 that they are overconfident.

    Args:
        logits: floating [N, C], of the valid split.
        labels: integers [N], 0..C-1.

    Raises:
        DataError: no images, or shapes or values that `measure` refuses.
    """
    with torch.inference_mode(False), torch.enable_grad():  # the caller may be inside either
        logits, labels = _checked(logits, labels)
        log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [log_t], max_iter=50, tolerance_grad=1e-8, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimiser.zero_grad()
            return _scaled_loss(log_t, logits, labels)

        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return min(max(math.exp(log_t.item()), TEMPERATURES[0]), TEMPERATURES[1])


def _scaled_loss(log_t: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits / T, its gradient added to log_t; outside the bounds a slope back."""
    low, high = (math.log(bound) for bound in TEMPERATURES)
    total = (log_t - log_t.detach().clamp(low, high)).square()
    total.backward()  # type: ignore[no-untyped-call]
    for rows, targets in _portions(logits, labels):
        scaled = rows * torch.exp(-log_t.clamp(low, high))
        part = F.cross_entropy(scaled, targets, reduction="sum") / len(labels)
        part.backward()  # type: ignore[no-untyped-call]
        total = total.detach() + part.detach()
    return total.detach()


def measure(logits: Tensor, labels: Tensor, *, temperature: float, seed: int) -> dict[str, float]:
    """The figures of one split.

    `loss` is the mean cross-entropy in nats, at temperature 1. Its interval is the percentile bootstrap over
    images (Efron 1979), that of `macro_f1` the basic bootstrap (Davison and Hinkley 1997, section 5.2), both
    of 1000 resamples; that of `accuracy` is Wilson's score interval; all 95 %. `top5_accuracy` looks at all
    classes where there are fewer than five. `macro_f1` is torchmetrics' mean over the classes that occur in
    the labels or in the predictions, in a resample as in the split; a class that occurs only in one of the
    two has F1 = 0. `ece` is the expected calibration error (Naeini et al. 2015) of the first choice in 15
    equal bins, `ece_calibrated` the same for logits / temperature.

    macro_f1 is not resampled without bias: a draw misses a third of the images, so its F1 is lower. The
    basic interval mirrors that bias away: in a simulation of 120 classes at 0.8 with 7 images each it held
    the true value in 88 % of the cases, the percentile one in 83 %.

    Args:
        logits: floating [N, C], finite, N >= 1, C >= 2; any device.
        labels: integers [N], 0..C-1.
        temperature: above 0, as `fit_temperature` found it on the valid split.
        seed: of the bootstrap, at least 0.

    Returns:
        loss, loss_low, loss_high, accuracy, accuracy_low, accuracy_high, top5_accuracy, macro_f1,
        macro_f1_low, macro_f1_high, ece, ece_calibrated (all but the loss in 0..1), images.

    Raises:
        DataError: no images, or arguments that are not as stated.
    """
    logits, labels = _checked(logits, labels)
    if not 0 < temperature < math.inf:
        raise DataError(f"temperature: {temperature}; accepted: a finite number above 0")
    n, classes = logits.shape
    losses = _losses(logits, labels)
    predicted = logits.argmax(dim=1)
    correct = int((predicted == labels).sum())
    f1 = multiclass_f1_score(predicted, labels, classes, average="macro", validate_args=False)
    means, scores = _bootstrap(losses, labels.numpy(), predicted.numpy(), classes, seed)
    loss_low, loss_high = _interval(means)
    f1_low, f1_high = _mirrored(_interval(scores), float(f1))
    low, high = wilson_interval(correct, n)
    return {
        "loss": float(losses.mean()),
        "loss_low": loss_low,
        "loss_high": loss_high,
        "accuracy": correct / n,
        "accuracy_low": low,
        "accuracy_high": high,
        "top5_accuracy": _top_k_correct(logits, labels, k=min(5, classes)) / n,
        "macro_f1": float(f1),
        "macro_f1_low": f1_low,
        "macro_f1_high": f1_high,
        "ece": _calibration_error(logits, labels, 1.0),
        "ece_calibrated": _calibration_error(logits, labels, temperature),
        "images": float(n),
    }


def per_class_accuracy(logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> dict[str, float | None]:
    """The share of each class's images that are classified right; None for a class without images.

    Args:
        logits: floating [N, C].
        labels: integers [N], 0..C-1.
        class_names: C names, in the order of the logits.

    Raises:
        DataError: no images, the wrong number of names, or values that `measure` refuses.
    """
    confusion = _confusion(logits, labels, class_names)
    right, images = confusion.diagonal().tolist(), confusion.sum(axis=1).tolist()
    return {name: r / n if n else None for name, r, n in zip(class_names, right, images, strict=True)}


def confused_pairs(logits: Tensor, labels: Tensor, class_names: Sequence[str], top: int = 10) -> list[ConfusedPair]:
    """The `top` most frequent errors, the most frequent first, equally frequent ones by name.

    Args:
        logits: floating [N, C].
        labels: integers [N], 0..C-1.
        class_names: C names, in the order of the logits.
        top: the most pairs to return; pairs that never occur are left out.

    Raises:
        DataError: no images, the wrong number of names, or values that `measure` refuses.
    """
    confusion = _confusion(logits, labels, class_names)
    images = confusion.sum(axis=1)
    np.fill_diagonal(confusion, 0)
    pairs = [
        ConfusedPair(class_names[t], class_names[p], int(confusion[t, p]), float(confusion[t, p] / images[t]))
        for t, p in np.argwhere(confusion)
    ]
    return sorted(pairs, key=lambda pair: (-pair.count, pair.true, pair.predicted))[:top]


def _checked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the CPU and without a gradient, labels as int64."""
    if logits.ndim != 2 or not logits.is_floating_point() or labels.shape != logits.shape[:1]:
        raise DataError(
            f"logits: {logits.dtype} {list(logits.shape)} with labels {list(labels.shape)}; "
            "accepted: floating [N, C] with [N]"
        )
    if len(labels) == 0:
        raise DataError("no images to measure")
    classes = logits.shape[1]
    if classes < 2:
        raise DataError(f"logits: {classes} classes; accepted: 2 or more")
    least, most = labels.min().item(), labels.max().item()
    if labels.is_floating_point() or least < 0 or most >= classes:
        raise DataError(f"labels: {labels.dtype} from {least} to {most}; accepted: integers 0 to {classes - 1}")
    broken = sum(int((~rows.isfinite().all(dim=1)).sum()) for rows in torch.split(logits, ROWS))
    if broken:
        raise DataError(f"logits: not finite for {broken} of {len(labels)} images; accepted: finite numbers")
    return logits.detach().cpu(), labels.detach().cpu().long()


def _portions(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(float64 logits [<= ROWS, C], labels) until all are seen; never the tensors that came in."""
    for rows, targets in zip(torch.split(logits, ROWS), torch.split(labels, ROWS), strict=True):
        yield rows.to(torch.float64, copy=True), targets.clone()


def _losses(logits: Tensor, labels: Tensor) -> Floats:
    """Cross-entropy of each image in nats, [N]."""
    parts = [F.cross_entropy(rows, y, reduction="none") for rows, y in _portions(logits, labels)]
    losses: Floats = torch.cat(parts).numpy()
    return losses


def _top_k_correct(logits: Tensor, labels: Tensor, k: int) -> int:
    """How many labels are among the k largest logits."""
    return sum(
        int(multiclass_stat_scores(z, y, z.shape[1], average="micro", top_k=k, validate_args=False)[0])
        for z, y in _portions(logits, labels)
    )


def _calibration_error(logits: Tensor, labels: Tensor, temperature: float) -> float:
    """Expected calibration error of the first choice, 0..1.

    torchmetrics' binary form on (confidence, right or not) is its multiclass form without the
    probabilities of all other classes. It puts a confidence of exactly 1 into a bin of its own, and
    applies a sigmoid to all of them where one exceeds 1 by rounding: both are held just below 1.
    """
    top = [(z / temperature).softmax(dim=1).max(dim=1).values for z, _ in _portions(logits, labels)]
    confidence = torch.cat(top).clamp(max=1 - torch.finfo(torch.float64).eps)
    right = (logits.argmax(dim=1) == labels).long()
    return float(binary_calibration_error(confidence, right, n_bins=CALIBRATION_BINS, validate_args=False))


def _confusion(logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> Counts:
    """Images by [label, prediction], [C, C]."""
    logits, labels = _checked(logits, labels)
    classes = logits.shape[1]
    if len(class_names) != classes:
        raise DataError(f"class_names: {len(class_names)} names; accepted: {classes}, one per logit")
    confusion: Counts = multiclass_confusion_matrix(logits.argmax(dim=1), labels, classes, validate_args=False).numpy()
    return confusion


def _bootstrap(losses: Floats, labels: Counts, predicted: Counts, classes: int, seed: int) -> tuple[Floats, Floats]:
    """Mean loss and macro-F1 of RESAMPLES draws of N out of the N images, [RESAMPLES] each."""
    rng, n = np.random.default_rng(seed), len(losses)
    # F1 needs no more of a draw than how often each pair (label, prediction) is in it: counting the
    # pairs that occur takes a third of the time of counting labels, predictions and hits by image.
    pairs, pair_of = np.unique(labels * classes + predicted, return_inverse=True)
    means, scores = np.empty(RESAMPLES), np.empty(RESAMPLES)
    for i in range(RESAMPLES):  # one draw at a time: memory stays at a few arrays of N
        drawn = rng.integers(0, n, size=n)
        means[i] = losses.take(drawn).mean()
        counts = np.bincount(pair_of.take(drawn), minlength=len(pairs))
        scores[i] = _macro_f1(pairs // classes, pairs % classes, counts, classes)
    return means, scores


def _macro_f1(actual: Counts, predicted: Counts, counts: Counts, classes: int) -> float:
    """Mean of 2 TP / (labels + predictions) over the classes that occur, from pairs and their counts [K]."""
    right = actual == predicted
    hits = np.bincount(actual[right], weights=counts[right], minlength=classes)
    occurrences = np.bincount(actual, counts, classes) + np.bincount(predicted, counts, classes)
    f1 = 2 * hits / np.maximum(occurrences, 1)
    return float(f1.sum() / np.count_nonzero(occurrences))


def _interval(statistics: Floats) -> tuple[float, float]:
    """The middle 95 % of resampled statistics [RESAMPLES]."""
    low, high = np.quantile(statistics, (0.025, 0.975))
    return float(low), float(high)


def _mirrored(interval: tuple[float, float], estimate: float) -> tuple[float, float]:
    """The basic bootstrap interval of a share, from the percentile one."""
    low, high = interval
    return max(0.0, 2 * estimate - high), min(1.0, 2 * estimate - low)
