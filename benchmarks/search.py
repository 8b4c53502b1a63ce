"""A search of 8 configurations four ways, and what a trial costs as there are more of them, on this machine.

    python -m benchmarks.search --photos DIR --weights FILE [--backbone resnet50] [--parts ways loss views counts]

DIR has train/, valid/ and test/. The 8 configurations are batch sizes 32 to 256 times two learning rates, each of
4 epochs. The ways:

    a  the original's: a plain loop for each trial: PIL, frozen backbone in eager fp32, head; nothing is kept
    b  as torchvision's reference would: 2 loader workers, channels_last, autocast to bf16 where the processor has it
    c  ours with an empty cache, start-up, checks of the photos and the retrained best included
    d  ours with a full cache, likewise

`ways`: (a) and (b) look at every photo in every epoch of every trial. One epoch of each on a subset (10 classes,
25 + 3 photos a class) is timed with each batch size and scaled by images, and in turn with it a small search
(10 classes, 10 + 3 photos a class, 2 epochs) is run in full, trial by trial, to see whether the scaling holds.
(c) and (d) are run in full.
`loss`: the best valid loss of (c) against that of (a) on 10 classes with all their photos and the same transform, over
5 seeds, with the one-sided upper 95 % bound of the difference.
`views`: what 5 cached augmented views of each training photo cost and gain, on 10 classes with all their photos.
`counts`: `tune.py`, warm, start-up included, with 8 to 128 trials: seconds a trial, the share of the machine's fp32
matrix rate that the products of training reach, and the same with halving.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 4  # of every configuration, so that the ways compare
CONFIGURATIONS = [(lr, batch) for lr in (0.001, 0.003) for batch in (32, 64, 128, 256)]
COUNTS = (8, 16, 32, 64, 80, 128)
SEEDS = list(range(5))
CLASSES = 10  # of the subset and of the small set
HOLDS = 0.15  # the scaling may be off by so much
HIDDEN = 512
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
    weights = str(Path(options.weights).resolve()) if Path(options.weights).exists() else options.weights
    whole = Path(options.photos).resolve()
    out = Console(width=120, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)

        def inputs(photos: Path) -> Inputs:
            return _inputs(photos, options.backbone, weights)

        if {"loss", "views"} & set(options.parts):
            some = inputs(_some(whole, place / "some"))
        if "ways" in options.parts:
            small = inputs(_some(whole, place / "small", train=10, valid=3))
            subset = inputs(_some(whole, place / "subset", train=25, valid=3))
            out.print(_ways(inputs(whole), subset, small, place))
        if "loss" in options.parts:
            out.print(_loss(some, place))
        if "views" in options.parts:
            out.print(_views(some, place))
        if "counts" in options.parts:
            out.print(_counts(inputs(whole), place))


def _options() -> argparse.Namespace:
    parts = ("ways", "loss", "views", "counts")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--backbone", default="resnet50", choices=sorted(WIDTHS))
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=parts)
    return parser.parse_args()


def _inputs(photos: Path, backbone: str, weights: str) -> Inputs:
    counts = {split: sum(1 for path in (photos / split).glob("*/*") if path.is_file()) for split in ("train", "valid")}
    classes = sum(1 for path in (photos / "train").iterdir() if path.is_dir())
    return Inputs(photos, backbone, weights, counts["train"], counts["valid"], classes)


def _some(photos: Path, target: Path, *, train: int | None = None, valid: int | None = None) -> Path:
    """The first photos of the first classes, or all of theirs; one of each for test."""
    for split, count in (("train", train), ("valid", valid), ("test", 1)):
        for folder in sorted(path for path in (photos / "train").iterdir() if path.is_dir())[:CLASSES]:
            (target / split / folder.name).mkdir(parents=True)
            for photo in sorted((photos / split / folder.name).iterdir())[:count]:
                shutil.copy(photo, target / split / folder.name)
    return target


# --- the ways --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Took:
    """What a plain way took: seconds, photos looked at, and by seed the lowest valid loss of each trial."""

    seconds: float
    looked: int
    losses: list[list[float]]


def _plain(
    inputs: Inputs,
    way: str,
    pairs: Sequence[tuple[float, int]],
    *,
    epochs: int = EPOCHS,
    seeds: Sequence[int] = (0,),
    memo: bool = False,
) -> Took:
    """A plain way in a process of its own.

    Args:
        inputs: the photos.
        way: a or b.
        pairs: (learning rate, batch size) of the trials.
        epochs: of each.
        seeds: of heads and orders; the trials are run with each.
        memo: the backbone's features are kept: for losses, not for seconds.
    """
    request = {
        **{"photos": str(inputs.photos), "backbone": inputs.backbone, "weights": inputs.weights},
        **{"way": way, "pairs": list(pairs), "epochs": epochs, "seeds": list(seeds), "memo": memo},
    }
    command = [sys.executable, "-m", "benchmarks.plain_search", json.dumps(request)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return Took(**json.loads(done.stdout.splitlines()[-1]))


def _tune(inputs: Inputs, place: Path, *argv: str, cache: str = "cache") -> tuple[float, Path]:
    """Seconds of `python tune.py`, start-up included, and its run directory."""
    run_dir = place / f"run-{time.monotonic_ns()}"
    command = [
        *(sys.executable, str(ROOT / "tune.py"), "data=folder", f"data.root={inputs.photos}", f"run_dir={run_dir}"),
        *(f"model.backbone={inputs.backbone}", f"model.weights={inputs.weights}"),
        *("model.resize=256", "model.image_size=224"),  # as benchmarks.plain_search does
        *(f"features.cache_dir={place / cache / inputs.photos.name}", "trainer.progress=false", *argv),
    ]
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started, run_dir


def _grid(repeats: int = 0) -> Iterator[str]:
    yield from ("search=given", "search.sampler=grid", f"search.repeats={repeats}", f"trainer.max_epochs={EPOCHS}")
    yield from ("trainer.patience=null", "data.batch_size=32,64,128,256", "optim.lr=0.001,0.003")


# --- what is printed -------------------------------------------------------------------------------------------------


def _ways(whole: Inputs, subset: Inputs, small: Inputs, place: Path) -> Table:
    """The four ways on all photos, with the check of the scaling below."""
    pace, checks = {}, []
    for way in ("a", "b"):
        # In turn, for the machine's speed changes; the subset once with each batch size, for eager mode is slower with
        # large ones.
        full, parts = [], []
        for number, pair in enumerate(CONFIGURATIONS):
            full.append(_plain(small, way, [pair], epochs=2))
            if number % 2:
                parts.append(_plain(subset, way, [CONFIGURATIONS[number // 2]], epochs=1))
        pace[way] = statistics.mean(part.seconds / part.looked for part in parts)
        seconds, looked = sum(took.seconds for took in full), sum(took.looked for took in full)
        off = pace[way] * looked / seconds - 1
        checks.append(f"({way}) {seconds:.0f} s in full, {pace[way] * looked:.0f} s scaled: {off:+.0%}")
    seconds_of = {way: pace[way] * whole.looks for way in ("a", "b")}
    seconds_of["c"], _ = _tune(whole, place, *_grid())
    seconds_of["d"] = statistics.median(_tune(whole, place, *_grid())[0] for _ in range(3))
    table = Table(
        title=f"8 configurations, {whole.backbone}, {whole.train} + {whole.valid} photos", title_justify="left"
    )
    for column in ("way", "seconds", "times (c)", "photos/s", "how"):
        table.add_column(column)
    for way, value in seconds_of.items():
        speed = f"{1 / pace[way]:.1f}" if way in pace else ""
        how = f"scaled from {subset.train + subset.valid} photos" if way in pace else "measured"
        table.add_row(way, f"{value:,.0f}", f"{value / seconds_of['c']:.1f}", speed, how)
    once = pace["a"] * (whole.train + whole.valid)
    table.caption = (
        f"(a)/(c) {seconds_of['a'] / seconds_of['c']:.0f}, of which keeping features {seconds_of['a'] / once:.0f} and "
        f"numerics, less all else that (c) does, {once / seconds_of['c']:.1f}; "
        f"(b)/(c) {seconds_of['b'] / seconds_of['c']:.0f}. "
        f"Scaling on {small.train} + {small.valid} photos, to hold within {HOLDS:.0%}: {'; '.join(checks)}"
    )
    return table


def _loss(some: Inputs, place: Path) -> str:
    """The best valid loss of (c) minus that of (a), over seeds, with the same transform."""
    honest = _plain(some, "a", CONFIGURATIONS[3:4], epochs=1).losses[0][0]
    kept = _plain(some, "a", CONFIGURATIONS[3:4], epochs=1, memo=True).losses[0][0]
    theirs = _plain(some, "a", CONFIGURATIONS, seeds=SEEDS, memo=True).losses
    differences = []
    for seed, losses in zip(SEEDS, theirs, strict=True):
        _, run_dir = _tune(some, place, *_grid(), f"seed={seed}")
        differences.append(_best(run_dir) - min(losses))
    error = np.std(differences, ddof=1) / np.sqrt(len(SEEDS))
    upper = np.mean(differences) + stats.t.ppf(0.95, len(SEEDS) - 1) * error
    return (
        f"best valid loss on {some.train} + {some.valid} photos, (c) - (a), {len(SEEDS)} seeds: "
        f"{np.mean(differences):+.4f}, standard error {error:.4f}, upper 95 % bound {upper:+.4f}. "
        "The features of (a) were kept between its seeds; "
        f"a trial without that differs by {abs(honest - kept):.1e}"
    )


def _views(some: Inputs, place: Path) -> Table:
    """Cold searches with the plain view alone and with augmented ones beside it."""
    table = Table(title=f"augmented views, {some.train} + {some.valid} photos, cold", title_justify="left")
    for column in ("features.views", "seconds", "valid/loss of the best, mean and deviation over 5 other seeds"):
        table.add_column(column)
    for views in (0, 5):
        seconds, run_dir = _tune(some, place, *_grid(repeats=5), f"features.views={views}", cache=f"cache-{views}")
        of_best = json.loads((run_dir / "repeats.json").read_text())["of_best"]
        values = [outcome["value"] for outcome in of_best]
        table.add_row(str(views), f"{seconds:.0f}", f"{statistics.mean(values):.4f} +- {statistics.stdev(values):.4f}")
    return table


def _counts(inputs: Inputs, place: Path) -> Table:
    table = Table(title="tune.py, warm, start-up included", title_justify="left")
    for column in ("trials", "seconds", "a trial", "of the matrix rate", "best valid/loss", "halving: seconds", "best"):
        table.add_column(column, justify="right")
    rate = _matrix_rate()
    _tune(inputs, place, *_random(8), "search.repeats=0")
    _, seeds = _tune(inputs, place, *_random(8), "search.repeats=5")
    for count in COUNTS:
        plain, run_dir = _tune(inputs, place, *_random(count), "search.repeats=0")
        halved, halved_dir = _tune(inputs, place, *_random(count), "search.repeats=0", "search.pruner=halving")
        share = _operations(run_dir, inputs) / plain / rate
        figures = (f"{plain:.1f}", f"{plain / count:.2f}", f"{share:.0%}", f"{_best(run_dir):.4f}")
        table.add_row(str(count), *figures, f"{halved:.1f}", f"{_best(halved_dir):.4f}")
    values = [outcome["value"] for outcome in json.loads((seeds / "repeats.json").read_text())["of_best"]]
    table.caption = (
        f"random trials of up to 8 epochs; repeats are left out, the retrained best is in. {rate / 1e9:.0f} GFLOP/s. "
        f"One standard deviation of the best over seeds: {statistics.stdev(values):.4f}"
    )
    return table


def _random(count: int) -> tuple[str, str]:
    return "search.sampler=random", f"search.trials={count}"


def _best(run_dir: Path) -> float:
    study = _study(run_dir)
    return float(study["trials"][study["best"]]["value"])


def _operations(run_dir: Path, inputs: Inputs) -> float:
    """Of the products in all steps that trials took: forward once, backward without the gradient of the inputs."""
    a_photo = 2 * (2 * WIDTHS[inputs.backbone] * HIDDEN + 3 * HIDDEN * inputs.classes)
    trials = _study(run_dir)["trials"]
    # The last batch of an epoch is smaller: an epoch has as many photos as there are.
    photos = sum(
        trial["steps"] / -(-inputs.train // trial["params"]["data.batch_size"]) * inputs.train for trial in trials
    )
    return float(photos * a_photo)


def _study(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_dir / "study.json").read_text())
    return content


def _matrix_rate(size: int = 4096) -> float:
    """FLOP/s of a product of two fp32 matrices on all cores."""
    import torch

    a = torch.randn(size, size)
    torch.mm(a, a)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(a, a)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    main()
