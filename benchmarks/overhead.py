"""What recording costs: time of a training step with the debugger and the profiler, beside that without them.

    python -m benchmarks.overhead [--path features images] [--rounds 5] [--epochs 8] [--on debugger=default]

Photos are drawn once. A round is one fit with and one without, in turn, the order changing from round to round, all in
this process; a step's time is from the start of one training batch to that of the next, evaluations left out, so that
flushes count where they fall into it. Figures are medians: of the steps of a fit, then over the rounds. The time of a
whole fit, evaluations and flushes included, stands beside it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from graft.config import Config

ON = ("debugger=default", "profiler=default")
OFF = ("debugger=off", "profiler=off")
PATHS = {
    # Small photos, for only their features are read: 1,280 of each, batches of 128.
    "features": ("model=mobilenet_v2", "model.weights=none", "model.image_size=32", "data.demo_per_class=250"),
    # A frozen ResNet-50 that runs in every step.
    "images": (
        "model=resnet50",
        "model.weights=none",
        "model.image_size=128",
        "features=off",
        "data.demo_per_class=20",
        "data.batch_size=16",
    ),
}


@dataclass(frozen=True)
class Fit:
    """Seconds of one fit.

    Attributes:
        step: median of its training steps.
        mean_step: mean of them, in which rare steps count that take long.
        whole: of all of it.
    """

    step: float
    mean_step: float
    whole: float


def main() -> None:
    """Draw photos, fit in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", nargs="+", choices=list(PATHS), default=list(PATHS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--on", nargs="+", default=ON, help="overrides of the fits that record")
    arguments = parser.parse_args()
    table = Table(title="recording against not recording", title_justify="left")
    for column in ("path", "step off", "step on", "more", "mean step off", "mean step on", "more", "fit off", "fit on"):
        table.add_column(column, justify="left" if column == "path" else "right")
    with tempfile.TemporaryDirectory() as folder:
        for path in arguments.path:
            fits = measure(path, Path(folder), arguments.rounds, arguments.epochs, arguments.on)
            table.add_row(path, *figures(fits))
    Console(width=120).print(table)


def measure(path: str, folder: Path, rounds: int, epochs: int, on: Sequence[str]) -> dict[str, list[Fit]]:
    """Fits of one path with (`on`) and without (`off`) recording, by turns."""
    fits: dict[str, list[Fit]] = {"off": [], "on": []}
    overrides = [f"trainer.max_epochs={epochs}", *PATHS[path], f"data.root={folder / path}"]
    overrides += [f"features.cache_dir={folder / 'cache'}"]
    ways = {"off": [*overrides, *OFF], "on": [*overrides, *on]}
    for way, given in ways.items():  # the first of each imports, allocates and looks at the photos
        fit_once(compose(given, folder / f"{path}-{way}-first"))
    for number in range(rounds):
        for way in sorted(ways, reverse=bool(number % 2)):
            fits[way].append(fit_once(compose(ways[way], folder / f"{path}-{way}-{number}")))
    return fits


def figures(fits: dict[str, list[Fit]]) -> list[str]:
    """The cells of a row."""
    cells = []
    for name in ("step", "mean_step"):
        off, on = (statistics.median(getattr(fit, name) for fit in fits[way]) for way in ("off", "on"))
        cells += [f"{off * 1e3:.3f} ms", f"{on * 1e3:.3f} ms", f"{on / off - 1:+.1%}"]
    return [*cells, *(f"{statistics.median(fit.whole for fit in fits[way]):.2f} s" for way in ("off", "on"))]


def compose(overrides: Sequence[str], run_dir: Path) -> Config:
    """The configuration of one fit on drawn photos."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    import graft.command  # noqa: F401, with the schema that the composition begins with
    from graft.config import parse

    fixed = ["data=demo", "trainer.accelerator=cpu", "trainer.progress=false"]
    fixed += ["evaluate.test=false", "trainer.patience=null", f"run_dir={run_dir}"]
    conf = Path(__file__).resolve().parents[1] / "conf"
    with initialize_config_dir(str(conf), version_base="1.3"):
        return parse(hydra_compose("config", [*fixed, *overrides]))


def fit_once(config: Config) -> Fit:
    """Seconds of the fit of a run."""
    import pytorch_lightning as pl

    from graft.trainer import train

    class Clock(pl.Callback):
        """Notes when training batches start."""

        def __init__(self) -> None:
            self.steps: list[float] = []
            self.last: float | None = None
            self.began = self.ended = 0.0

        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.began = time.perf_counter()

        def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, index: int) -> None:
            now = time.perf_counter()
            if self.last is not None:
                self.steps.append(now - self.last)
            self.last = now

        def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.last = None

        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.ended = time.perf_counter()

    clock = Clock()
    train(config, watching=[clock])
    return Fit(statistics.median(clock.steps), statistics.fmean(clock.steps), clock.ended - clock.began)


if __name__ == "__main__":
    main()
