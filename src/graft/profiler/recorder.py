"""The profiler of one run: it measures from the start to the end, then says what it found."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from graft.diagnosis import Diagnosis, failing_no_run, told, write_diagnosis
from graft.profiler.causes import judge
from graft.profiler.records import FOLDER, Facts, Records, RecordWriter, merged, percentiles_ms, read_records
from graft.profiler.sampler import Sampler
from graft.profiler.stopwatch import Stopwatch
from graft.storage import write_text


class Profile:
    """A run's stopwatch and, where the profiler is on, its records; ends by itself where the run fails.

    Attributes:
        watch: tells it what the run does; counts in any case.
        facts: of the run, as far as they are known.

    Args:
        run_dir: of the run; None records nothing.
        started: `time.perf_counter()` when the run began.
        interval_s: seconds from one sample to the next.
    """

    def __init__(self, run_dir: Path | None, started: float, interval_s: float = 0.5) -> None:
        self.run_dir, self.interval_s = run_dir, interval_s
        self.watch = Stopwatch(started)
        self.facts = Facts()
        self._sampler: Sampler | None = None

    @property
    def is_on(self) -> bool:
        """Whether anything is recorded."""
        return self.run_dir is not None

    @property
    def trace(self) -> Path:
        """Where the trace of torch.profiler goes."""
        return (self.run_dir or Path()) / FOLDER / "trace.json.gz"

    def __enter__(self) -> Profile:
        if self.run_dir:
            self._sampler = Sampler(RecordWriter(self.run_dir), self.watch, self.interval_s, lambda: self.facts)
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.conclude()

    def conclude(self) -> tuple[str, ...]:
        """End the records and judge them; the dearest finding in a line, if there is one. Once: then nothing."""
        sampler, self._sampler = self._sampler, None
        lines: list[str] = []
        if sampler and self.run_dir:
            with failing_no_run("the time that the run took", lines.append):
                sampler.stop()
                lines += told(diagnose(self.run_dir))[:1]
        return tuple(lines)


def diagnose(run_dir: Path) -> Diagnosis:
    """Judge a run by its records; write `profiler/findings.json` and `profiler/summary.json`.

    Raises:
        RunError: nothing was recorded, or a record is damaged.
    """
    records = read_records(run_dir)
    diagnosis = judge(records)
    write_diagnosis(run_dir / FOLDER / "findings.json", diagnosis)
    write_text(run_dir / FOLDER / "summary.json", json.dumps(summarise(records), indent=1) + "\n")
    return diagnosis


def summarise(records: Records) -> dict[str, Any]:
    """Where the time went, as plain JSON values: seconds, and milliseconds of a training step."""
    usd = records.facts.usd_per_hour
    return {
        "seconds": records.seconds,
        "usd": None if usd is None else records.seconds / 3600 * usd,
        "phases_s": merged(records.phases),
        "steps": len(records.step_seconds),
        "step_ms": percentiles_ms(records.step_seconds),
        "samples": len(records.samples.get("seconds", ())),
    }
