"""The live table of a search; nothing where nobody looks at a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from graft.config import OBJECTIVES
from graft.search.advice import best_number
from graft.search.space import Value
from graft.search.trials import Record, ok_values

ROWS = 16  # the latest trials


class Board:
    """Trial, parameters, state, objective, best so far and the time left, while trials run.

    Args:
        records: reads the trials.
        total: trials in all.
        objective: its name.
    """

    def __init__(self, records: Callable[[], list[Record]], total: int, objective: str) -> None:
        self.records, self.total, self.objective = records, total, objective
        console = Console(stderr=True)
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self.started, self.done_before = time.monotonic(), 0

    def __enter__(self) -> Board:
        self.done_before = sum(record.outcome is not None for record in self.records())
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def refresh(self) -> None:
        """Show how things stand."""
        if self.live:
            elapsed = time.monotonic() - self.started
            self.live.update(table(self.records(), self.total, self.objective, elapsed, self.done_before), refresh=True)


def table(records: Sequence[Record], total: int, objective: str, elapsed: float, done_before: int = 0) -> Table:
    """The latest trials, under a title with the best so far and the time left.

    Args:
        records: all trials that were begun.
        total: trials in all.
        objective: its name.
        elapsed: seconds since the first of these was begun by this process.
        done_before: trials that had ended by then.
    """
    done = [record for record in records if record.outcome is not None]
    title = f"trial {len(done)} of {total}"
    if values := ok_values(records):
        best = best_number(values, maximize=OBJECTIVES[objective])
        title += f", best so far: trial {best}, {objective} {values[best]:.4f}"
    if fresh := len(done) - done_before:
        title += f", about {elapsed / fresh * (total - len(done)):.0f} s left"
    shown = Table(title=title, title_justify="left")
    for column in ("trial", "parameters", "state", objective, "seconds"):
        shown.add_column(column, justify="left" if column in ("parameters", "state") else "right", overflow="fold")
    for record in records[-ROWS:]:
        outcome = record.outcome
        value = "" if outcome is None or outcome.value is None else f"{outcome.value:.4f}"
        seconds = "" if outcome is None else f"{outcome.seconds:.1f}"
        state = outcome.state if outcome else "running"
        shown.add_row(str(record.number), in_words(record.params), state, value, seconds)
    return shown


def in_words(params: Mapping[str, Value]) -> str:
    """Parameters in a line, with the digits that matter."""
    return " ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in params.items()
    )
