"""The stopwatch: at any moment a run is in one phase, so that the phases add up to the time it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from graft.profiler.records import PHASES

STEP_COLUMNS = ("seconds", *PHASES)
_PLACES = {name: place for place, name in enumerate(PHASES)}


class Stopwatch:
    """Counts the seconds of each phase; one inside of another counts as itself alone.

    Only the thread that made it may change the phase; any may read.

    Args:
        started: `clock()` when the run began.
        clock: seconds that only grow.
    """

    def __init__(self, started: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.started, self.clock = started, clock
        self._since = started
        self._totals = [0.0] * len(PHASES)
        self._at_last_step = list(self._totals)
        self._stack = [_PLACES["start_up"]]
        self.steps: list[tuple[float, ...]] = []

    def enter(self, phase: str) -> None:
        """Begin a phase inside of the present one."""
        self._count()
        self._stack.append(_PLACES[phase])

    def leave(self) -> None:
        """End the innermost phase."""
        self._count()
        self._stack.pop()

    def become(self, phase: str) -> None:
        """End the innermost phase and begin another in its place."""
        self._count()
        self._stack[-1] = _PLACES[phase]

    def _count(self) -> None:
        now = self.clock()
        self._totals[self._stack[-1]] += now - self._since
        self._since = now

    @property
    def phase(self) -> str:
        """The innermost phase."""
        return PHASES[self._stack[-1]]

    @contextmanager
    def measured(self, phase: str) -> Iterator[None]:
        """Count what is inside as a phase."""
        depth = len(self._stack)
        self.enter(phase)
        try:
            yield
        finally:
            # What failed inside may have left phases open.
            while len(self._stack) > depth:
                self.leave()

    def end_step(self) -> None:
        """Note what was spent since the step before."""
        self._count()
        spent = [now - before for now, before in zip(self._totals, self._at_last_step, strict=True)]
        self._at_last_step = list(self._totals)
        self.steps.append((self._since - self.started, *spent))

    def begin_steps(self) -> None:
        """What was spent until now belongs to no step."""
        self._count()
        self._at_last_step = list(self._totals)

    def totals(self) -> dict[str, float]:
        """Seconds of each phase until now; read from another thread, a change of phase may lie between two of them."""
        totals = list(self._totals)
        totals[self._stack[-1]] += self.clock() - self._since
        return dict(zip(PHASES, totals, strict=True))
