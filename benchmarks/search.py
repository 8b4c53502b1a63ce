"""A search of 8 configurations four ways, and what a trial costs as there are more of them, on this machine.

    python -m benchmarks.search --photos DIR --weights FILE [--backbone resnet50] [--subset 1000] [--small-only]

DIR has train/ and valid/. The ways, all with the same 8 configurations (batch size x learning rate, as many epochs):

    a  the original's: a plain loop for each trial: PIL, frozen backbone in eager fp32, head; nothing is kept
    b  as torchvision's reference would: loader workers, channels_last, autocast to bf16; nothing is kept
    c  ours with an empty cache
    d  ours with a full cache

(a) and (b) look at every photo in every epoch of every trial. They are timed on `subset` photos for each of a few
(trial, epoch) pairs and scaled by images; a small search (10 classes, 10 + 3 photos a class) is run in full, and says
whether the scaling holds. With the same transform, 5 seeds of (a) and of (c) on it also say what the loss differs by.

Then `tune.py` itself, warm, start-up included, with 8, 16, 32, 64 and 128 trials: seconds a trial, the share of the
machine's matrix rate, and the same with halving.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 4  # of every configuration, so that the ways compare
CONFIGURATIONS = [(lr, batch) for lr in (0.001, 0.003) for batch in (32, 64, 128, 256)]
COUNTS = (8, 16, 32, 64, 128)
SEEDS = range(5)
HOLDS = 0.15  # the scaling may be off by so much
T975_4 = 2.776  # Student's t with 4 degrees of freedom
WIDTHS = {"resnet50": 2048, "mobilenet_v2": 1280, "resnet18": 512}


@dataclass(frozen=True)
class Inputs:
    """What every way is given: photos, their counts, and the backbone."""

    photos: Path
    backbone: str
    weights: str
    train: int
    valid: int
    classes: int

    @property
    def looks(self) -> int:
        """Photos through the backbone in a search that keeps nothing."""
        return len(CONFIGURATIONS) * EPOCHS * (self.train + self.valid)


def main() -> None:
    """Measure and print."""
    options = _options()
    photos = Path(options.photos).resolve()
    weights = str(Path(options.weights).resolve()) if Path(options.weights).exists() else options.weights
    whole = _inputs(photos, options.backbone, weights)
    out = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        small = _inputs(_small(photos, place / "small"), options.backbone, weights)
        out.print(_check_scaling(small), highlight=False)
        out.print(_check_loss(small, place), highlight=False)
        if options.small_only:
            return
        out.print(_ways(whole, options.subset, place))
        out.print(_by_count(whole, place))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--backbone", default="resnet50", choices=sorted(WIDTHS))
    parser.add_argument("--subset", type=int, default=600, help="photos that (a) and (b) are timed on")
    parser.add_argument("--small-only", action="store_true", help="only the small search, in full")
    return parser.parse_args()


def _inputs(photos: Path, backbone: str, weights: str) -> Inputs:
    counts = {split: sum(1 for path in (photos / split).glob("*/*") if path.is_file()) for split in ("train", "valid")}
    classes = sum(1 for path in (photos / "train").iterdir() if path.is_dir())
    return Inputs(photos, backbone, weights, counts["train"], counts["valid"], classes)


def _small(photos: Path, target: Path, classes: int = 10, train: int = 10, valid: int = 3) -> Path:
    """A small set: the first photos of the first classes."""
    for split, count in (("train", train), ("valid", valid), ("test", 1)):
        for folder in sorted(path for path in (photos / "train").iterdir() if path.is_dir())[:classes]:
            source = photos / split / folder.name
            for photo in sorted(source.iterdir())[:count]:
                (target / split / folder.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(photo, target / split / folder.name)
    return target


# --- the usual ways --------------------------------------------------------------------------------------------------


def _plain(
    inputs: Inputs, way: str, pairs: Sequence[tuple[float, int]], *, most: int | None, seed: int = 0
) -> tuple[float, float, int]:
    """Seconds, lowest valid loss of the last configuration, and photos looked at, in a process of its own.

    Args:
        inputs: the photos.
        way: a or b.
        pairs: (learning rate, batch size) of the trials.
        most: photos to look at before it stops; None runs the trials in full.
        seed: of the head and the order.
    """
    request = json.dumps(
        {
            "photos": str(inputs.photos),
            "backbone": inputs.backbone,
            "weights": inputs.weights,
            "way": way,
            "pairs": list(pairs),
            "epochs": EPOCHS,
            "most": most,
            "seed": seed,
        }
    )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.plain_search", request], cwd=ROOT, capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    return float(answer["seconds"]), float(answer["loss"]), int(answer["looked"])


def _tune(inputs: Inputs, place: Path, *argv: str) -> tuple[float, Path]:
    """Seconds of `python tune.py`, start-up included, and its run directory."""
    run_dir = place / f"run-{time.monotonic_ns()}"
    started = time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, str(ROOT / "tune.py"), "data=folder", f"data.root={inputs.photos}", f"run_dir={run_dir}"),
            *(f"model.backbone={inputs.backbone}", f"model.weights={inputs.weights}"),
            *("model.resize=256", "model.image_size=224"),  # as benchmarks.plain_search does
            *(f"features.cache_dir={place / 'cache' / inputs.photos.name}", "trainer.progress=false", *argv),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - started, run_dir


def _grid() -> Iterator[str]:
    yield from ("search=given", "search.sampler=grid", "search.repeats=0", f"trainer.max_epochs={EPOCHS}")
    yield from ("trainer.patience=null", "data.batch_size=32,64,128,256", "optim.lr=0.001,0.003")


# --- what is printed -------------------------------------------------------------------------------------------------


def _check_scaling(small: Inputs) -> str:
    """Whether seconds per photo of a part tell those of the whole, where the whole is small enough to be run."""
    parts = []
    for way in ("a", "b"):
        whole, _, looked = _plain(small, way, CONFIGURATIONS, most=None)
        part, _, seen = _plain(small, way, CONFIGURATIONS[:2], most=looked // 4)
        off = part / seen * looked / whole - 1
        parts.append(f"({way}) {whole:.0f} s in full, {part / seen * looked:.0f} s scaled: {off:+.0%}")
    return f"scaling on {small.train} + {small.valid} photos, held within {HOLDS:.0%}: {'; '.join(parts)}"


def _check_loss(small: Inputs, place: Path) -> str:
    """The best valid loss of (c) minus that of (a), over seeds, with the same transform."""
    differences = []
    for seed in SEEDS:
        theirs = min(_plain(small, "a", [pair], most=None, seed=seed)[1] for pair in CONFIGURATIONS)
        _, run_dir = _tune(small, place, *_grid(), f"seed={seed}")
        ours = min(t["value"] for t in json.loads((run_dir / "study.json").read_text())["trials"] if t["value"])
        differences.append(ours - theirs)
    upper = np.mean(differences) + T975_4 * np.std(differences, ddof=1) / np.sqrt(len(differences))
    mean = f"{np.mean(differences):+.4f}"
    return f"best valid loss, (c) - (a), {len(differences)} seeds: {mean}, at most {upper:+.4f} (95 %)"


def _ways(inputs: Inputs, subset: int, place: Path) -> Table:
    table = Table(
        title=f"8 configurations, {inputs.backbone}, {inputs.train} + {inputs.valid} photos", title_justify="left"
    )
    for column in ("way", "seconds", "against (d)", "how"):
        table.add_column(column)
    seconds = {}
    for way in ("a", "b"):
        took, _, looked = _plain(inputs, way, CONFIGURATIONS[:2], most=subset)
        seconds[way] = took / looked * inputs.looks
    seconds["c"], _ = _tune(inputs, place, *_grid())
    seconds["d"], _ = _tune(inputs, place, *_grid())
    once = seconds["a"] / (len(CONFIGURATIONS) * EPOCHS)
    seconds["c, 5 views"], _ = _tune(inputs, place, *_grid(), "features.views=5")
    how = {"a": f"scaled from {subset} photos", "b": f"scaled from {subset} photos"}
    for name, value in seconds.items():
        table.add_row(name, f"{value:.0f}", f"{seconds['d'] and value / seconds['d']:.1f}", how.get(name, "measured"))
    table.caption = (
        f"(a)/(c) {seconds['a'] / seconds['c']:.0f}, of which keeping features {seconds['a'] / once:.0f} "
        f"and numerics {once / seconds['c']:.1f}; (b)/(c) {seconds['b'] / seconds['c']:.0f}"
    )
    return table


def _by_count(inputs: Inputs, place: Path) -> Table:
    table = Table(title="tune.py, warm, start-up included", title_justify="left")
    for column in ("trials", "seconds", "a trial", "of the matrix rate", "best valid/loss", "halving: seconds", "best"):
        table.add_column(column, justify="right")
    rate = _matrix_rate()
    for count in COUNTS:
        argv = ("search.sampler=random", "search.repeats=0", f"search.trials={count}")
        plain, run_dir = _tune(inputs, place, *argv)
        halved, halved_dir = _tune(inputs, place, *argv, "search.pruner=halving")
        share = _flop(run_dir, inputs) / plain / rate
        figures = (f"{plain:.1f}", f"{plain / count:.2f}", f"{share:.0%}", f"{_best(run_dir):.4f}")
        table.add_row(str(count), *figures, f"{halved:.1f}", f"{_best(halved_dir):.4f}")
    table.caption = "trials at random; repeats are left out, the retrained best is in"
    return table


def _best(run_dir: Path) -> float:
    study = json.loads((run_dir / "study.json").read_text())
    return float(study["trials"][study["best"]]["value"])


def _flop(run_dir: Path, inputs: Inputs, hidden: int = 512) -> float:
    """Of the products of all trials: forward once, backward without the gradient of the inputs."""
    trials = json.loads((run_dir / "study.json").read_text())["trials"]
    width = WIDTHS[inputs.backbone]
    an_image = 2 * (2 * width * hidden + 3 * hidden * inputs.classes)
    epochs = 8  # of the default configuration
    return float(len(trials) * epochs * inputs.train * an_image)


def _matrix_rate(size: int = 2048) -> float:
    """FLOP/s of a product of two fp32 matrices on all cores."""
    import torch

    a = torch.randn(size, size)
    torch.mm(a, a)
    best = 0.0
    for _ in range(10):
        started = time.perf_counter()
        torch.mm(a, a)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    main()
