"""A run directory as graft leaves it, written by hand: for tests of what reads one."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from graft.diagnosis import Diagnosis, Finding, RuleSummary, write_diagnosis
from tests.pictures import draw, write

# In a path the slash parts folders: the class folder is `<script>alert(1)<`, its photo `script>.jpg`.
HOSTILE = "<script>alert(1)</script>"
HOSTILE_FOLDER, HOSTILE_FILE = HOSTILE.split("/")
CLASSES = ("001.Akita", "002.Beagle", HOSTILE_FOLDER)

METRICS = {
    "loss": 0.5, "loss_low": 0.4, "loss_high": 0.6, "accuracy": 0.8, "accuracy_low": 0.77, "accuracy_high": 0.83,
    "top5_accuracy": 0.97, "macro_f1": 0.79, "macro_f1_low": 0.76, "macro_f1_high": 0.82, "ece": 0.04,
    "ece_calibrated": 0.02, "images": 700.0,
}  # fmt: skip
FINDING = Finding(
    rule="recomputed_frozen_features",
    seen=f"the frozen backbone was run 5 times on photos of {HOSTILE}",
    why="its answer was known after the first time",
    change="features=cached",
    key="features.enabled",
    gain="8 epochs in 4 s instead of 100 s",
    since_step=10,
    cost_s=96.0,
    saved_s=90.0,
    symptoms=(Finding("low_gpu_utilization", "the GPU was at 0 %", "it was paid for", "nothing of its own"),),
)


def metrics(*splits: str, **changed: float) -> dict[str, float]:
    """Flat metrics of splits, the same for each, with the times of a run."""
    found = {f"{split}/{name}": value for split in splits for name, value in METRICS.items()}
    times = {"time/features_s": 10.0, "time/fit_s": 2.5, "time/total_s": 75.0}
    return found | times | {name.replace("__", "/"): value for name, value in changed.items()}


def write_run(path: Path, **changed: Any) -> Path:
    """A finished run with photos beside it; `changed` replaces whole files by name, or leaves one out (None)."""
    photos = path.with_name(f"{path.name}-photos")
    files: dict[str, Any] = {
        "run.json": {"id": "ab" * 16, "state": "finished", "reason": "", "at": "2026-11-27T12:00:00+00:00"},
        "metrics.json": metrics("valid", "test") | {"test/openings": 1, "data/undecodable": 0},
        "evaluation.json": {split: _evaluation() for split in ("valid", "test")},
        "data.json": _data(),
        "environment.json": {"git_sha": "abc", "packages": {"torch": "2.14.1"}, "argv": ["train.py", HOSTILE]},
        **changed,
    }
    path.mkdir(parents=True)
    for name, content in files.items():
        if content is not None:
            (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    (path / "config.yaml").write_text(
        f"data:\n  kind: folder\n  root: {json.dumps(str(photos))}\n"
        f"model:\n  fit: crop\n  weights: {json.dumps(HOSTILE)}\n"
    )
    write_photos(photos)
    if "predictions.csv" not in changed:
        write_predictions(path / "predictions.csv", photos)
    write_logs(path)
    write_diagnosis(path / "debugger" / "findings.json", Diagnosis((), (RULE,)))
    write_diagnosis(path / "profiler" / "findings.json", Diagnosis((FINDING,), (replace(RULE, triggered=1),)))
    return path


RULE = RuleSummary("loss_not_decreasing", f"the loss falls {HOSTILE}", 0, 376, {"diff_percent": 0.1, "num_steps": 10})


def write_photos(root: Path) -> None:
    """Three photos of each class in train and test."""
    for split in ("train", "test"):
        for label, name in enumerate(CLASSES):
            for number in range(3):
                file = HOSTILE_FILE if name == HOSTILE_FOLDER and number == 0 else f"{number}"
                write(root / split / name / f"{file}.jpg", draw(label, np.random.default_rng((label, number))))


def write_predictions(path: Path, root: Path) -> None:
    """One photo of each class is taken for the next class; of the other two, the model is sure."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        pairs = [f"{kind}_{place}" for place in range(1, 6) for kind in ("class", "probability")]
        writer.writerow(["path", "split", "label", *pairs])
        for label, name in enumerate(CLASSES):
            for number in range(3):
                stem = HOSTILE_FILE if name == HOSTILE_FOLDER and number == 0 else f"{number}"
                guess = CLASSES[(label + (number == 0)) % 3]
                others = [other for other in CLASSES if other != guess]
                row = [root / "test" / name / f"{stem}.jpg", "test", name, guess, 0.9, others[0], 0.06, others[1], 0.04]
                writer.writerow(row)


def write_logs(path: Path, rows: str = "") -> None:
    """Lightning's CSV log: two training losses and an evaluation in each of three epochs."""
    folder = path / "logs" / "csv" / "version_0"
    folder.mkdir(parents=True)
    losses = ((2.0, 1.5, 1.4), (1.2, 1.1, 1.0), (0.9, 0.8, 0.998))
    lines = ["epoch,step,train/loss,valid/accuracy,valid/loss"]
    for epoch, (first, second, valid) in enumerate(losses):
        lines += [f"{epoch},{20 * epoch + 9},{first},,", f"{epoch},{20 * epoch + 19},{second},,"]
        lines += [f"{epoch},{20 * epoch + 19},,0.5,{valid}"]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n" + rows)


def _evaluation() -> dict[str, Any]:
    return {"temperature": 1.1, "per_class_accuracy": dict.fromkeys(CLASSES, 0.8), "confused_pairs": []}


def _data() -> dict[str, Any]:
    copies = [f"test/{CLASSES[0]}/1.jpg = train/{CLASSES[0]}/1.jpg", f"test/{CLASSES[2]}/2.jpg = train/gone.jpg"]
    leak = {"check": "near_duplicates", "level": "warning", "count": 2, "message": f"2 of {HOSTILE}", "files": copies}
    damaged = [
        {"split": "train", "truncated": [f"{HOSTILE}.jpg"], "undecodable": []},
        {"split": "test", "truncated": 1, "undecodable": 2},
    ]
    return {"photos": {"train": 9, "valid": 9, "test": 700}, "damaged": damaged, "ignored": [], "findings": [leak]}
