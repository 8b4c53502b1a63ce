"""Seconds for each trial of a search on cached features: 8 to 128 heads trained together, and fits one by one.

    python -m benchmarks.heads [--trials 8 16 32 64 128] [--epochs 1] [--rounds 2] [--separate 4]

The features are drawn: 6,000 training and 840 validation vectors of 2,048 numbers, 120 classes, as ResNet-50 gives
for photos. Trials are drawn as `search=default` draws them: learning rate and weight decay at random, batch sizes
32, 64, 128 and 256 in turn, so that every number of trials has the same mix. `one by one` is the ordinary fit of
`train()` for the first trials of the list, checkpoints and logs included, features in memory; the fewer the
epochs, the more its start weighs.

Every way runs once in every round, in turn; figures are medians over the rounds. The share of the matrix rate is
that of the products of training (forward, and the gradients of both layers) in all the time it took, evaluation
and optimiser included, against float32 products of two 4096 x 4096 matrices on all cores in the same round.
CPU seconds are of all cores, and tell on a busy machine what the wall clock does not. Trials that diverge stop
early, so the learning rates stay below 1e-2 here: every trial takes all its steps.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from graft.features.source import FeatureSource
    from graft.search.heads import HeadTrial

WIDTH, HIDDEN, CLASSES = 2048, 512, 120
TRAIN, VALID = 6000, 840
BATCH_SIZES = (32, 64, 128, 256)
SIDE = 4096  # of the matrices that give the machine's rate


@dataclass(frozen=True)
class Measured:
    """One way in one round.

    Attributes:
        seconds: wall clock, for each trial.
        cpu_seconds: of all cores, for each trial.
        rate: floating-point operations a second in the products of training.
    """

    seconds: float
    cpu_seconds: float
    rate: float


def main() -> None:
    """Draw features, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--separate", type=int, default=4, help="trials that are also fitted one by one")
    arguments = parser.parse_args()
    import torch

    train, valid = draw_features(TRAIN, seed=0), draw_features(VALID, seed=1)
    trials = draw_trials(max(*arguments.trials, arguments.separate), arguments.epochs)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for run in (together, one_by_one):  # the first of each imports and allocates
        run(draw_trials(1, epochs=1), train, valid, device)
    ways: dict[str, tuple[Sequence[HeadTrial], Callable[..., None]]] = {
        "one by one": (trials[: arguments.separate], one_by_one),
        **{f"{count} together": (trials[:count], together) for count in arguments.trials},
    }
    measured: dict[str, list[Measured]] = {way: [] for way in ways}
    limits = []
    for _ in range(arguments.rounds):
        limits.append(matrix_rate(device))
        for way, (chosen, run) in ways.items():
            measured[way].append(measure(run, chosen, train, valid, device))
    show(measured, limits, arguments.epochs, device)


def draw_features(count: int, *, seed: int) -> FeatureSource:
    """Non-negative vectors around one centre for each class, most of whose numbers are small, as a ResNet's are."""
    import numpy as np

    from graft.features.cache import Table as Vectors
    from graft.features.extract import Extracted
    from graft.features.source import FeatureSource

    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    centres = np.random.default_rng(99).exponential(0.25, (CLASSES, WIDTH))
    records = np.zeros(count, [("key", "S16"), ("status", "u1"), ("feature", "f4", (WIDTH,))])
    records["key"] = [str(number).encode() for number in range(count)]
    records["feature"] = centres[labels] + rng.exponential(0.4, (count, WIDTH))
    return FeatureSource([Extracted(Vectors([records], WIDTH), np.arange(count), records["key"], 0, count)], labels)


def draw_trials(count: int, epochs: int) -> list[HeadTrial]:
    """Trials that differ in learning rate, weight decay and batch size."""
    import numpy as np

    from graft.search.heads import HeadTrial

    rng = np.random.default_rng(0)
    return [
        HeadTrial(
            number=number,
            lr=float(10 ** rng.uniform(-4, -2)),
            weight_decay=float(10 ** rng.uniform(-6, -2)),
            batch_size=BATCH_SIZES[number % len(BATCH_SIZES)],
            max_epochs=epochs,
            max_steps=-1,
            patience=None,
            seed=0,
            hidden=HIDDEN,
            algorithm="adam",
            schedule="constant",
            label_smoothing=0.0,
            clip_norm=None,
            balance="none",
        )
        for number in range(count)
    ]


def measure(
    run: Callable[..., None], trials: Sequence[HeadTrial], train: FeatureSource, valid: FeatureSource, device: str
) -> Measured:
    """Train the trials and clock it."""
    started, cpu_started = time.perf_counter(), time.process_time()
    run(trials, train, valid, device)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    # Two products of the first layer (its input needs no gradient), three of the second.
    per_photo = 2 * (2 * WIDTH * HIDDEN + 3 * HIDDEN * CLASSES)
    operations = sum(trial.max_epochs for trial in trials) * len(train) * per_photo
    return Measured(seconds / len(trials), cpu_seconds / len(trials), operations / seconds)


def together(trials: Sequence[HeadTrial], train: FeatureSource, valid: FeatureSource, device: str) -> None:
    """All heads on one pass."""
    from graft.search.heads import train_heads
    from graft.search.heads_features import Features

    sources = (Features(source, device=device) for source in (train, valid))
    results = train_heads(trials, *sources, num_classes=CLASSES, report=lambda _: "continue")
    unwell = [f"{result.number}: {result.reason}" for result in results if result.state != "ok"]
    if unwell:
        raise SystemExit(f"not all trials took all their steps, so the figures would flatter: {', '.join(unwell)}")


def one_by_one(trials: Sequence[HeadTrial], train: FeatureSource, valid: FeatureSource, device: str) -> None:
    """The ordinary fit of each."""
    from graft.assembly import HEAD_THREADS
    from graft.classifier import Classifier
    from graft.data.folder import Split
    from graft.data.module import ImageData
    from graft.fit import fit, quiet_lightning
    from graft.inputs import InputSpec
    from graft.stores import LocalStore

    quiet_lightning()
    names = tuple(str(number) for number in range(CLASSES))
    splits = [
        Split(
            "", LocalStore(Path()), "", tuple(f"{label}/{n}" for n, label in enumerate(source.labels.tolist())), names
        )
        for source in (train, valid)
    ]
    spec = InputSpec(224, 224, "crop", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    for trial in trials:
        with tempfile.TemporaryDirectory(prefix="graft-bench-") as folder:
            # Its backbone is idle: features are what goes in.
            classifier = Classifier("resnet50", CLASSES, hidden=HIDDEN, lr=trial.lr, weight_decay=trial.weight_decay)
            fit(
                classifier,
                ImageData(*splits, spec=spec, batch_size=trial.batch_size, train_source=train, valid_source=valid),
                checkpoints=Path(folder) / "checkpoints",
                logs=Path(folder) / "logs",
                device=device,
                max_epochs=trial.max_epochs,
                max_steps=-1,
                patience=None,
                precision="fp32",
                checkpoint_minutes=5.0,
                progress=False,
                threads=HEAD_THREADS,
            )


def matrix_rate(device: str) -> float:
    """Floating-point operations a second of float32 products on all cores, or on the GPU; the best of several."""
    import torch

    one, other = (torch.randn(SIDE, SIDE, device=device) for _ in range(2))
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(one, other)[0, 0].item()
        best = max(best, 2 * SIDE**3 / (time.perf_counter() - started))
    return best


def show(measured: dict[str, list[Measured]], limits: Sequence[float], epochs: int, device: str) -> None:
    """The table, and how the cost of a trial falls with their number."""

    def median(way: str, of: Callable[[Measured], float]) -> float:
        return statistics.median(of(round_) for round_ in measured[way])

    from graft.environment import available_cores

    console = Console(width=120)
    table = Table(title=f"{epochs} epochs of {TRAIN} x {WIDTH} features, {available_cores()} cores, {device}")
    for column in (
        "trials",
        "s per trial",
        "lowest .. highest",
        "CPU s per trial",
        "times faster",
        "of the matrix rate",
    ):
        table.add_column(column, justify="left" if column == "trials" else "right")
    for way, rounds in measured.items():
        seconds = [round_.seconds for round_ in rounds]
        shares = [round_.rate / limit for round_, limit in zip(rounds, limits, strict=True)]
        faster = [alone.seconds / round_.seconds for alone, round_ in zip(measured["one by one"], rounds, strict=True)]
        cells: list[Any] = [f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f} .. {max(seconds):.2f}"]
        cells += [f"{median(way, lambda round_: round_.cpu_seconds):.2f}", f"{statistics.median(faster):.1f}"]
        table.add_row(way, *cells, f"{statistics.median(shares):.0%}")
    console.print(table)
    console.print(f"the machine's float32 matrix rate: {statistics.median(limits) / 1e9:.0f} GFLOP/s", highlight=False)


if __name__ == "__main__":
    main()
