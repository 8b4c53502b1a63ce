"""What a person at the terminal sees: progress bars while it runs, small tables at the end."""

# rich and numpy (through artifacts) take 0.15 s to import: `--help` and a typo do not pay for them, so each
# function imports what it needs.

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from graft.errors import GraftError

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


@contextmanager
def progress_bar(title: str, total: int, shown: bool = True, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """A bar with images/s (or MB/s) and the time left; yields the function that advances it. Thread-safe.

    Args:
        title: in front of the bar.
        total: of what is counted.
        shown: false makes no bar at all; without a terminal there is none either.
        unit: what is counted: images, or bytes.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    in_bytes = unit == "bytes"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TransferSpeedColumn() if in_bytes else _rate_column(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def status_line(text: str) -> Iterator[Callable[[str], None]]:
    """A line at the foot of the terminal; yields the function that rewrites it. Without a terminal there is none."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status(text) as line:
        yield lambda text: line.update(text)


def _rate_column(unit: str) -> ProgressColumn:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Rate(ProgressColumn):
        """Images, or what is counted, per second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f} {unit}/s", style="cyan")

    return Rate()


def say(message: str) -> None:
    """One line for the person, on stderr; above the bar where one is shown, for rich redirects stderr then.

    Of the processes that torchrun started, the first one speaks.
    """
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):  # nobody reads it any more: what is to be rolled back still has to be
            print(message, file=sys.stderr)


@contextmanager
def plain_errors(run_dir: Path | str | None = None, *, in_sweep: bool = False) -> Iterator[None]:
    """What a person can mend ends the program with one line, and so does Ctrl-C; no traceback.

    Args:
        run_dir: of the run, where there is one.
        in_sweep: the error is kept in the run directory, and the sweep goes on.
    """
    try:
        yield
    except GraftError as error:
        print(f"error: {error}", file=sys.stderr)
        if run_dir is None or not in_sweep:
            sys.exit(2)
        from graft.artifacts import record_failure

        record_failure(Path(run_dir), str(error))
    except KeyboardInterrupt:
        say(_resumable(run_dir))
        sys.exit(130)
    except SystemExit as stop:
        if stop.code in (129, 130, 143):  # SIGHUP, Ctrl-C, SIGTERM
            say(_resumable(run_dir))
        raise


def _resumable(run_dir: Path | str | None) -> str:
    return f"stopped; the same command with run_dir={run_dir} goes on from here" if run_dir else "stopped"


def run_table(
    run_dir: Path,
    metrics: Mapping[str, float],
    *,
    toy: bool,
    remarks: Sequence[str] = (),
    findings: Sequence[str] = (),
    costs: Sequence[str] = (),
    report: Path | None = None,
) -> None:
    """Accuracy with its interval, loss and seconds of one run, where it lies and what to do next.

    Args:
        run_dir: of the run.
        metrics: its flat metrics.
        toy: whether the photos were drawn by a program.
        remarks: what is wrong with the photos.
        findings: what the debugger found in the training.
        costs: what the profiler found to take the most time.
        report: the page that was made of it.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"run {run_dir}{', toy figures' if toy else ''}", title_justify="left")
    for column in ("split", "accuracy", "95 % interval", "top-5", "loss", "images"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in ("valid", "test"):
        if f"{split}/accuracy" in metrics:
            table.add_row(split, *_figures(metrics, split))
    out = Console()
    out.print(table)
    seconds = (f"{name} {metrics[f'time/{name}_s']:.1f} s" for name in ("features", "fit", "total"))
    out.print(f"time: {', '.join(seconds)}", highlight=False)
    if "test/openings" in metrics:
        times = f"{metrics['test/openings']:.0f} time{'s' if metrics['test/openings'] > 1 else ''}"
        out.print(f"test: opened {times} with these photos", highlight=False)
    for remark in remarks:
        out.print(f"data: {remark}", highlight=False, soft_wrap=True, markup=False)
    for finding in findings:
        out.print(f"training: {finding}", highlight=False, soft_wrap=True, markup=False)
    for cost in costs:
        out.print(f"speed: {cost}", highlight=False, soft_wrap=True, markup=False)
    if report:
        out.print(f"report: {report}", highlight=False, soft_wrap=True, markup=False)
    out.print(f"bundle: {run_dir}/bundle", highlight=False, soft_wrap=True)
    out.print(f"next: python -c \"import graft; print(graft.load('{run_dir}/bundle')('PHOTO'))\"", soft_wrap=True)


def sweep_table(sweep_dir: Path) -> bool:
    """One row per run of a sweep, the lowest valid/loss first; returns whether all of them finished."""
    from rich.console import Console
    from rich.table import Table

    rows = sorted(_sweep_rows(sweep_dir), key=lambda row: (row[0], row[1]))
    table = Table(title=f"runs of {sweep_dir}", title_justify="left")
    for column in ("run", "overrides", "valid/loss", "valid/accuracy", "seconds"):
        table.add_column(column, overflow="fold")
    for _, _, cells in rows:
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return all(loss != float("inf") for loss, _, _ in rows)


def _figures(metrics: Mapping[str, float], split: str) -> list[str]:
    value = {name: metrics[f"{split}/{name}"] for name in ("accuracy", "top5_accuracy", "loss", "images")}
    interval = f"{metrics[f'{split}/accuracy_low']:.3f} .. {metrics[f'{split}/accuracy_high']:.3f}"
    top5, loss, images = f"{value['top5_accuracy']:.3f}", f"{value['loss']:.4f}", f"{value['images']:.0f}"
    return [f"{value['accuracy']:.4f}", interval, top5, loss, images]


def _sweep_rows(sweep_dir: Path) -> Iterator[tuple[float, int, list[str]]]:
    from graft.artifacts import read_state

    runs = sorted(path for path in sweep_dir.iterdir() if path.name.isdigit())
    given = {run: _overrides(run) for run in runs}
    # What all members share tells none from another.
    shared = set.intersection(*map(set, given.values())) if len(runs) > 1 else set()
    for run in runs:
        overrides = " ".join(line for line in given[run] if line not in shared)
        try:
            metrics = json.loads((run / "metrics.json").read_text())
        except (OSError, ValueError):
            state = read_state(run)
            reason = state.get("reason") or state.get("state", "did not start")
            yield float("inf"), int(run.name), [run.name, overrides, reason, "", ""]
            continue
        loss, accuracy = metrics["valid/loss"], metrics["valid/accuracy"]
        yield loss, int(run.name), [
            run.name, overrides, f"{loss:.4f}", f"{accuracy:.4f}", f"{metrics['time/total_s']:.1f}",
        ]  # fmt: skip


def _overrides(run: Path) -> list[str]:
    try:
        listed = json.loads((run / "overrides.json").read_text())
    except (OSError, ValueError):
        return []
    return [line for line in listed if not line.startswith("run_dir=")]
