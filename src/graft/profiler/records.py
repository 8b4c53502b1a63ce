"""What a run measured of its own speed: files that can be read while it goes on, and after a kill.

A folder `profiler/` of the run. Each process that worked on the run has a session: `session-001.json` holds its facts
and the seconds of each phase up to the last flush; `samples-001-*.parquet` what the machine did,
`steps-001-*.parquet` what each training step took.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graft.errors import RunError
from graft.parquet import next_session, part_path, read_part, read_session, sessions, write_part, write_session

FOLDER = "profiler"
Column = NDArray[np.float64]
GAP_S = 1e-3  # between two steps of one process there is none but of rounding; a process takes seconds to start

# What a run does, in the order of a report. The parts of an evaluation are told together by `read_phases`.
STEP_PHASES = ("data_wait", "transfer", "forward", "backward", "optimiser")
EVALUATION_PARTS = ("evaluation_wait", "evaluation_forward", "final_evaluation")
PHASES = ("start_up", "look", *STEP_PHASES, "evaluation", *EVALUATION_PARTS, "checkpoint", "shutdown", "other")


@dataclass(frozen=True)
class Facts:
    """What the rules must know of a run beside its records.

    Attributes:
        device: cpu or cuda.
        frozen: whether the backbone is frozen.
        cached: whether training reads cached features.
        augment: whether training images are augmented.
        batch_size: photos of a training step, over all processes.
        workers: loader processes.
        cores: that this process may use.
        photos: usable photos by split.
        steps_per_epoch: training steps of an epoch.
        remote: whether the photos are in S3.
        keeps_copies: whether their local copies are kept.
        usd_per_hour: price of the machine; None where it was not said.
        cached_epoch_s: what an epoch on cached features was rehearsed to take; None where it was not.
    """

    device: str = "cpu"
    frozen: bool = True
    cached: bool = True
    augment: bool = False
    batch_size: int = 1
    workers: int = 0
    cores: int = 1
    photos: dict[str, int] = field(default_factory=dict)
    steps_per_epoch: int = 1
    remote: bool = False
    keeps_copies: bool = True
    usd_per_hour: float | None = None
    cached_epoch_s: float | None = None


@dataclass(frozen=True)
class Records:
    """All that a run measured.

    Attributes:
        facts: of the run.
        phases: phase -> seconds; together they are the time that the run took.
        samples: column -> float64 [N]: `seconds`, and what `read_samples` says.
        steps: column -> float64 [S]: `seconds` at the step's end, and those of each of `PHASES` from the
            end of the step before, evaluations and checkpoints included.
    """

    facts: Facts
    phases: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, Column] = field(default_factory=dict)
    steps: Mapping[str, Column] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """What the run took."""
        return sum(self.phases.values())

    @property
    def step_seconds(self) -> Column:
        """float64 [S]: of each step, without evaluations and checkpoints."""
        if not self.steps:
            return np.empty(0)
        seconds: Column = np.sum([self.steps[name] for name in (*STEP_PHASES, "other")], axis=0)
        return seconds

    @property
    def training_seconds(self) -> float:
        """From the first training step to the last of each process that trained, evaluations included."""
        return float(sum(self.steps[name].sum() for name in PHASES)) if self.steps else 0.0

    @property
    def training(self) -> Mapping[str, Column]:
        """The samples between the first training step and the last, of the last process that trained.

        Each is a number: a figure that the machine never told is left out, and a sample that lacks one.
        """
        if not self.samples or not len(self.steps.get("seconds", ())):
            return {}
        begin, end = _last_stretch(self.steps)
        inside = (self.samples["seconds"] >= begin) & (self.samples["seconds"] <= end)
        told = {name: values[inside] for name, values in self.samples.items() if np.isfinite(values[inside]).any()}
        whole = np.all([np.isfinite(values) for values in told.values()], axis=0)
        return {name: values[whole] for name, values in told.items()}

    def gpus(self, column: str) -> Column:
        """One measure of all GPUs while the run trained: float64 [G, N], `percent`, `memory_percent` or `watts`."""
        named = re.compile(rf"gpu\d+_{column}")
        found = [values for name, values in self.training.items() if named.fullmatch(name)]
        return np.array(found) if found else np.empty((0, 0))


def read_samples(run_dir: Path) -> dict[str, Column]:
    """What the machine did, float64 [N] each; empty where nothing was recorded.

    `seconds` since the run began, the time between two processes of a resumed run left out; `cpu_percent` (mean over
    the cores, 0..100) and `cpu0_percent` of each; `iowait_percent`; `memory_percent`; `disk_read_mb_s`,
    `disk_write_mb_s`, `net_mb_s` (received and sent, 1e6 bytes); of each GPU `gpu0_percent`, `gpu0_memory_percent`
    and `gpu0_watts`.

    Raises:
        RunError: a file is damaged.
    """
    return _read_table(run_dir / FOLDER, "samples")


def read_phases(run_dir: Path) -> dict[str, float]:
    """Seconds of each phase over all processes of a run; empty where nothing was recorded.

    The phases are start_up, look (at the photos: features), data_wait, transfer, forward, backward, optimiser,
    evaluation, checkpoint, shutdown and other.

    Raises:
        RunError: a file is damaged.
    """
    return merged(_phases(run_dir / FOLDER))


def read_step_times(run_dir: Path) -> dict[str, dict[str, float]]:
    """What a training step took, in milliseconds: `p50`, `p95` and `p99` of each of its phases and of the whole.

    The keys are `STEP_PHASES`, other and step; empty where no step was recorded.

    Raises:
        RunError: a file is damaged.
    """
    records = Records(Facts(), steps=_read_table(run_dir / FOLDER, "steps"))
    if not len(records.step_seconds):
        return {}
    columns = {name: records.steps[name] for name in (*STEP_PHASES, "other")} | {"step": records.step_seconds}
    return {name: percentiles_ms(seconds) for name, seconds in columns.items()}


def percentiles_ms(seconds: Column) -> dict[str, float]:
    """Percentiles in milliseconds; empty where there are no seconds."""
    return {f"p{q}": float(np.percentile(seconds, q)) * 1e3 for q in (50, 95, 99)} if len(seconds) else {}


def merged(phases: Mapping[str, float]) -> dict[str, float]:
    """Phases with the parts of evaluation told as one."""
    evaluation = sum(phases.get(part, 0.0) for part in ("evaluation", *EVALUATION_PARTS))
    named = {name: seconds for name, seconds in phases.items() if name not in EVALUATION_PARTS}
    return named | {"evaluation": evaluation} if phases else {}


def has_records(run_dir: Path) -> bool:
    """Whether a run measured anything."""
    return bool(sessions(run_dir / FOLDER))


def read_records(run_dir: Path) -> Records:
    """All that a run measured, also of one that goes on or was killed: up to its last flush.

    Raises:
        RunError: nothing was recorded, or a file is damaged.
    """
    folder = run_dir / FOLDER
    found = sessions(folder)
    if not found:
        raise RunError(f"{run_dir} has no records of the profiler; accepted is a run made with profiler.enabled=true")
    known = {spec.name for spec in fields(Facts)}
    facts = {name: value for name, value in read_session(found[max(found)])["facts"].items() if name in known}
    return Records(Facts(**facts), _phases(folder), _read_table(folder, "samples"), _read_table(folder, "steps"))


class RecordWriter:
    """Writes the files of one session.

    Args:
        run_dir: of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / FOLDER
        self.session = next_session(self.folder)
        self._parts = 0
        self.write_session(Facts(), {})

    def write_session(self, facts: Facts, phases: Mapping[str, float]) -> None:
        """Replace the facts and the phases of this session."""
        content = {"facts": asdict(facts), "phases": dict(phases)}
        write_session(self.folder, self.session, content)

    def write(self, table: str, names: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
        """Write rows of `samples` or `steps` as one part; nothing where there are none."""
        if rows:
            columns = np.array(rows, np.float64).T
            path = part_path(self.folder, table, self.session, self._parts)
            write_part(path, dict(zip(names, columns, strict=True)))
            self._parts += 1


def _last_stretch(steps: Mapping[str, Column]) -> tuple[float, float]:
    """Begin and end of the last steps without a gap between them: a resumed run starts up and looks before its own."""
    ends = steps["seconds"]
    begins = ends - np.sum([steps[name] for name in PHASES], axis=0)
    gaps = np.flatnonzero(begins[1:] > ends[:-1] + GAP_S)
    return float(begins[gaps[-1] + 1 if len(gaps) else 0]), float(ends[-1])


def _phases(folder: Path) -> dict[str, float]:
    of_sessions = [read_session(path)["phases"] for path in sessions(folder).values()]
    names = [name for name in PHASES if any(name in phases for phases in of_sessions)]
    return {name: sum(phases.get(name, 0.0) for phases in of_sessions) for name in names}


def _read_table(folder: Path, table: str) -> dict[str, Column]:
    parts = list(_parts(folder, table))
    if not parts:
        return {}
    # A machine of a later session may have other cores or GPUs: what one of them lacks is not a number.
    names = dict.fromkeys(name for part in parts for name in part)
    lengths = [len(part["seconds"]) for part in parts]
    return {
        name: np.concatenate(
            [part.get(name, np.full(length, np.nan)) for part, length in zip(parts, lengths, strict=True)]
        )
        for name in names
    }


def _parts(folder: Path, table: str) -> Iterator[dict[str, Column]]:
    """The parts in order, with `seconds` that go on where the session before ended."""
    before = 0.0
    for number, session in sorted(sessions(folder).items()):
        for path in sorted(folder.glob(f"{table}-{number:03d}-*.parquet")):
            part = read_part(path)
            yield part | {"seconds": part["seconds"] + before}
        before += sum(read_session(session)["phases"].values())
