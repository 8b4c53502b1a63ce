"""The original's slow run, and what the profiler says of it: `python -m benchmarks.diagnosis DATA WEIGHTS`.

Trains MobileNetV2 as the original trained: no loader processes, eager fp32, the frozen backbone computed again in each
epoch. Prints the first finding with its symptoms, then what `apply` measures. A few classes are enough: times per
photo are what counts. Last, the recorded stand-in of a job whose GPU was idle.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from graft.profiler.__main__ import main as profiler

ROOT = Path(__file__).resolve().parents[1]
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
        profiler(["apply", str(place / "run")])
    print("== a recorded stand-in: a GPU that is idle (not measured here; see tests/recordings)")
    profiler(["findings", str(STAND_IN)])


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
