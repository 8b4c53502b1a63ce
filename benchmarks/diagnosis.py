"""The original's slow run, and what the profiler says of it: `python -m benchmarks.diagnosis DATA WEIGHTS`.

Trains MobileNetV2 as the original trained: no loader processes, eager fp32, the frozen backbone computed again in each
epoch. Prints the first finding with its symptoms, then what `apply` measures. A few classes are enough: times per
photo are what counts. Last, the recorded stand-in of a job whose GPU was idle. Ends with 1 unless the first finding is
the true cause, its change makes an epoch at least 5 times shorter, and within 30 % of what was predicted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from graft.profiler.__main__ import Comparison, advised, config_of, measure
from graft.profiler.__main__ import main as profiler

ROOT = Path(__file__).resolve().parents[1]
CAUSE, STEPS = "recomputed_frozen_features", 50
LEAST_TIMES, MOST_DIFFERENCE = 5.0, 0.3
STAND_IN = ROOT / "tests" / "recordings" / "idle_gpu"


def main() -> None:
    """Run, judge, apply."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train/, valid/ and test/")
    parser.add_argument("weights", type=Path, help="of MobileNetV2, in torchvision's layout")
    parser.add_argument("--classes", type=int, default=10, help="that are read (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="of the slow run (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        link_classes(arguments.data.resolve(), place / "photos", arguments.classes)
        slow_run(place, arguments.weights.resolve(), arguments.epochs)
        print("== the slow run")
        profiler(["findings", str(place / "run")])
        print("== its first advice, applied")
        faults = apply(place / "run")
    print("== a recorded stand-in: a GPU that is idle (not measured here; see tests/recordings)")
    profiler(["findings", str(STAND_IN)])
    print("; ".join(faults) or "all of it holds")
    sys.exit(1 if faults else 0)


def apply(run_dir: Path) -> list[str]:
    """Measure the first advice and print it; what is not as it must be."""
    finding = advised(run_dir)
    if finding is None or finding.rule != CAUSE:
        return [f"the first advice is of {finding.rule if finding else 'no rule'}, not of {CAUSE}"]
    found = measure(run_dir, config_of(run_dir), finding, STEPS)
    print("\n".join(found.lines()))
    return faults_of(found)


def faults_of(found: Comparison) -> list[str]:
    """What of a comparison is not as it must be."""
    predicted = float("nan") if found.predicted is None else found.predicted
    times, difference = found.was / found.measured, found.measured / predicted - 1
    holds = {
        f"an epoch takes {times:.3g} times less, not {LEAST_TIMES:g} or more": times >= LEAST_TIMES,
        f"measured differs from predicted by {difference:+.0%}, not by {MOST_DIFFERENCE:.0%} at most": abs(difference)
        <= MOST_DIFFERENCE,
    }
    return [words for words, is_so in holds.items() if not is_so]


def link_classes(data: Path, folder: Path, count: int) -> None:
    """The first classes of each split, as links."""
    for split in ("train", "valid", "test"):
        for source in sorted((data / split).iterdir())[:count]:
            (folder / split).mkdir(parents=True, exist_ok=True)
            (folder / split / source.name).mkdir()
            for photo in source.iterdir():
                (folder / split / source.name / photo.name).symlink_to(photo)


def slow_run(place: Path, weights: Path, epochs: int) -> None:
    """The original's way, in a process of its own."""
    overrides = [
        "data=folder",
        f"data.root={place / 'photos'}",
        "data.workers=0",
        "model=mobilenet_v2",
        f"model.weights={weights}",
        "features=off",
        f"features.cache_dir={place / 'cache'}",
        f"trainer.max_epochs={epochs}",
        "trainer.progress=false",
        f"run_dir={place / 'run'}",
    ]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
