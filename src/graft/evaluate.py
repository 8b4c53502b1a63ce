"""Evaluation: valid as often as wanted, test once, at the end, and counted.

This is the only module that opens the test split. Until it does, nothing has its labels and no
model has seen its photos but the frozen backbone, whose features say nothing of labels.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from graft.data.folder import Split
from graft.data.loader import Source
from graft.metrics import confused_pairs, fit_temperature, measure, per_class_accuracy
from graft.storage import write_text

PORTION = 64  # photos per step; ResNet-50 needs 10 MB for each


@dataclass(frozen=True)
class Evaluation:
    """What a model says of one split.

    Attributes:
        split: its photos, with labels.
        logits: float32 [N, C].
        labels: int64 [N].
        temperature: fitted on valid.
        metrics: the figures of `measure`.
    """

    split: Split
    logits: Tensor
    labels: Tensor
    temperature: float
    metrics: dict[str, float]


def evaluate(
    split: Split,
    source: Source,
    logits_of: Callable[[Tensor], Tensor],
    *,
    seed: int,
    temperature: float | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Predict on a split and measure.

    Args:
        split: with labels.
        source: its inputs, in the order of the split.
        logits_of: inputs [B, ...] -> logits float32 [B, C].
        seed: of the bootstrap.
        temperature: None fits it on this split.
        advance: told of every portion of photos that is done.
    """
    logits, labels = run_over(source, logits_of, advance)
    temperature = fit_temperature(logits, labels) if temperature is None else temperature
    metrics = measure(logits, labels, temperature=temperature, seed=seed)
    return Evaluation(split, logits, labels, temperature, metrics)


def evaluate_test(
    sealed: Split,
    source_of: Callable[[Split], Source],
    logits_of: Callable[[Tensor], Tensor],
    *,
    ledger: Path,
    data_fingerprint: str,
    config_hash: str,
    run_id: str,
    seed: int,
    temperature: float,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[Evaluation, int]:
    """Open the test split, which is counted in the ledger first, and measure on it.

    Returns:
        The evaluation, and how often this data has been opened, this time included.
    """
    openings = open_test(ledger, data_fingerprint=data_fingerprint, config_hash=config_hash, run_id=run_id)
    split = sealed.opened()
    source = source_of(split)
    return evaluate(split, source, logits_of, seed=seed, temperature=temperature, advance=advance), openings


def open_test(ledger: Path, *, data_fingerprint: str, config_hash: str, run_id: str) -> int:
    """Record that the test split is about to be looked at, and say how often it has been.

    Call it before the first prediction on test. The ledger is a file of JSON lines (time in UTC,
    data_fingerprint, config_hash, run_id) that only grows; processes take turns by `<ledger>.lock`.

    Returns:
        The number of openings of this data, this one included. A run that opens again with the same
        configuration (it was resumed) counts once.
    """
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "data_fingerprint": data_fingerprint,
        "config_hash": config_hash,
        "run_id": run_id,
    }
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{ledger}.lock"), ledger.open("a+b") as file:
        file.seek(0)
        before = file.read()
        # A crash may have left the last line torn: it is ended here, so that it spoils no other.
        ending = b"" if before.endswith(b"\n") or not before else b"\n"
        file.write(ending + json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    openings = [*_entries(before), entry]
    return len({(e["run_id"], e["config_hash"]) for e in openings if e["data_fingerprint"] == data_fingerprint})


def write_predictions(path: Path, evaluations: Sequence[Evaluation]) -> None:
    r"""CSV: path, split, label, and the five likeliest classes with their calibrated probabilities.

    A byte of a path that is not UTF-8 is written as an escape such as \udce9.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    places = range(1, 6)
    writer.writerow(["path", "split", "label", *(f"{kind}_{n}" for n in places for kind in ("class", "probability"))])
    for evaluation in evaluations:
        writer.writerows(_prediction_rows(evaluation))
    write_text(path, buffer.getvalue())


def details(evaluation: Evaluation) -> dict[str, Any]:
    """Accuracy per class and the most confused pairs, as plain JSON values."""
    e = evaluation
    names = e.split.class_names
    return {
        "temperature": e.temperature,
        "per_class_accuracy": per_class_accuracy(e.logits, e.labels, names),
        "confused_pairs": [asdict(pair) for pair in confused_pairs(e.logits, e.labels, names)],
    }


def run_over(
    source: Source, function: Callable[[Tensor], Tensor], advance: Callable[[int], None] = lambda count: None
) -> tuple[Tensor, Tensor]:
    """What a function gives for every input of a source, float32 [N, ...] on the CPU, and the labels int64 [N]."""
    found, labels = [], []
    for start in range(0, len(source), PORTION):
        places = [(0, index) for index in range(start, min(start + PORTION, len(source)))]
        inputs, known = source.__getitems__(places)
        with torch.inference_mode():
            found.append(function(inputs).float().cpu())
        labels.append(known)
        advance(len(places))
    return torch.cat(found), torch.cat(labels)


def _prediction_rows(evaluation: Evaluation) -> Iterator[list[str]]:
    names = evaluation.split.class_names
    probabilities = (evaluation.logits / evaluation.temperature).softmax(1)
    top, index = probabilities.topk(min(5, len(names)), dim=1)
    rows = zip(evaluation.labels.tolist(), top.tolist(), index.tolist(), strict=True)
    for number, (label, values, classes) in enumerate(rows):
        pairs = [cell for c, p in zip(classes, values, strict=True) for cell in (names[c], f"{p:.6f}")]
        yield [evaluation.split.path(number), evaluation.split.name, names[label], *pairs]


def _entries(lines: bytes) -> Iterator[dict[str, Any]]:
    """The whole entries of a ledger; a torn line was never answered, so its test split stayed shut."""
    for line in lines.split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and {"data_fingerprint", "config_hash", "run_id"} <= entry.keys():
            yield entry
