"""What a run recorded of its training: Parquet files that can be read while it goes on, and after a kill.

A folder `debugger/` of the run holds the parts of four tables, each part written whole or not at all. Every process
that worked on the run has a session of its own: `session-001.json` says at which step it took over, and what an
earlier one had recorded beyond that step does not count, for the steps were taken again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graft.errors import RunError
from graft.parquet import next_session, part_path, read_part, read_session, sessions, write_part, write_session

FOLDER = "debugger"
LOSS = "CrossEntropyLoss_output_0"  # what smdebug calls the first output of torch's CrossEntropyLoss
TRAIN, EVAL = "TRAIN", "EVAL"

Column = NDArray[Any]
# Of each table: column -> dtype of an absent one. `step` counts training steps unless `mode` is EVAL.
TABLES: dict[str, dict[str, str]] = {
    "losses": {
        "mode": "U", "name": "U", "step": "i8", "global_step": "i8", "value": "f8", "photos": "i8",
        "learning_rate": "f8",
    },
    "layers": {
        "step": "i8", "layer": "U", "gradient_norm": "f8", "gradient_mean": "f8", "weight_mean": "f8",
        "weight_std": "f8", "fan_in": "i8", "output_mean": "f8", "output_std": "f8",
    },
    "relus": {"step": "i8", "layer": "U", "dead": "f8", "photos": "i8"},
    "answers": {
        "mode": "U", "step": "i8", "global_step": "i8", "label": "i8", "guess": "i8", "p_label": "f8", "p_guess": "f8",
    },
    "labels": {"step": "i8", "label": "i8", "count": "i8"},
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What the rules must know of a run beside its records.

    Attributes:
        num_classes: C.
        batch_size: photos of a training step, over all processes.
        steps_per_epoch: training steps of an epoch.
        weighted: whether classes are balanced by weights in the loss.
        smoothing: label smoothing of the training loss.
        learning_rate: `optim.lr`.
        clipped: whether long gradients are shortened to `optim.clip_norm`; they are recorded as they were before.
    """

    num_classes: int
    batch_size: int
    steps_per_epoch: int
    weighted: bool = False
    smoothing: float = 0.0
    learning_rate: float = 0.0
    clipped: bool = False


@dataclass(frozen=True)
class Losses:
    """Cross-entropy in one mode.

    Attributes:
        step: int64 [N], as smdebug counts: batches of this mode seen before, over the whole run.
        global_step: int64 [N], optimiser steps that the weights had taken.
        value: float64 [N], mean over the batch, in nats; what was not finite is NaN or infinite here too.
        photos: int64 [N], size of the batch.
    """

    step: NDArray[np.int64]
    global_step: NDArray[np.int64]
    value: NDArray[np.float64]
    photos: NDArray[np.int64]


@dataclass(frozen=True)
class Records:
    """All that a run recorded; `tables` has the columns of `TABLES`, in the order of their steps."""

    facts: Facts
    tables: Mapping[str, Mapping[str, Column]] = field(default_factory=dict)

    def table(self, name: str) -> Mapping[str, Column]:
        """Columns of one table, of no rows where nothing was recorded."""
        return self.tables.get(name) or {column: np.empty(0, dtype) for column, dtype in TABLES[name].items()}

    def losses(self, mode: str) -> Losses:
        """Cross-entropy of TRAIN or EVAL, maybe of no steps."""
        rows = self.table("losses")
        of_mode = rows["mode"] == mode
        step, global_step, value, photos = (rows[c][of_mode] for c in ("step", "global_step", "value", "photos"))
        return Losses(step, global_step, value, photos)

    def evaluations(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Of each evaluation, in order: optimiser steps taken before, and its mean cross-entropy; [E] both."""
        losses = self.losses(EVAL)
        steps, group = np.unique(losses.global_step, return_inverse=True)
        with np.errstate(invalid="ignore"):
            sums = np.bincount(group, losses.value * losses.photos, len(steps))
        return steps, sums / np.bincount(group, losses.photos, len(steps))


def read_losses(run_dir: Path) -> dict[str, Losses]:
    """Cross-entropy of a run by mode, TRAIN and EVAL, each only where something was recorded.

    Raises:
        RunError: a file is damaged.
    """
    if not sessions(run_dir / FOLDER):
        return {}
    records = read_records(run_dir)
    found = {mode: records.losses(mode) for mode in (TRAIN, EVAL)}
    return {mode: losses for mode, losses in found.items() if len(losses.step)}


def has_records(run_dir: Path) -> bool:
    """Whether a run recorded anything."""
    return bool(sessions(run_dir / FOLDER))


def read_records(run_dir: Path) -> Records:
    """All records of a run, also of one that goes on or was killed: those up to its last flush.

    Raises:
        RunError: nothing was recorded, or a file is damaged.
    """
    folder = run_dir / FOLDER
    found = sessions(folder)
    if not found:
        raise RunError(f"{run_dir} has no records of the debugger; accepted is a run made with debugger.enabled=true")
    latest = read_session(found[max(found)])
    ends = _ends({number: read_session(path) for number, path in found.items()})
    return Records(Facts(**latest["facts"]), {name: _read_table(folder, name, ends) for name in TABLES})


class RecordWriter:
    """Writes the parts of one session.

    Args:
        run_dir: of the run.
        facts: of the run.
        starts: mode -> the first step that this session takes.
    """

    def __init__(self, run_dir: Path, facts: Facts, starts: Mapping[str, int]) -> None:
        self.folder = run_dir / FOLDER
        self.session = next_session(self.folder)
        self._parts = 0
        content = {"facts": asdict(facts), "starts": dict(starts)}
        write_session(self.folder, self.session, content)

    def write(self, table: str, columns: Mapping[str, Sequence[Any] | Column]) -> None:
        """Write rows of a table as one part; nothing where there are none."""
        if not len(next(iter(columns.values()))):
            return
        write_part(part_path(self.folder, table, self.session, self._parts), columns)
        self._parts += 1


def _ends(contents: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """Session -> mode -> the first step that a later session took again, or infinity."""
    return {
        number: {
            mode: min((later["starts"][mode] for other, later in contents.items() if other > number), default=np.inf)
            for mode in (TRAIN, EVAL)
        }
        for number in contents
    }


def _read_table(folder: Path, name: str, ends: Mapping[int, Mapping[str, float]]) -> dict[str, Column]:
    parts = list(_parts_that_count(folder, name, ends))
    if not parts:
        return {}
    columns = {column: np.concatenate([part[column] for part in parts]) for column in TABLES[name]}
    return {column: _plain(values, TABLES[name][column]) for column, values in columns.items()}


def _parts_that_count(
    folder: Path, name: str, ends: Mapping[int, Mapping[str, float]]
) -> Iterator[Mapping[str, Column]]:
    for path in sorted(folder.glob(f"{name}-*.parquet")):
        end = ends.get(int(path.stem.split("-")[1]))
        if end is None:
            continue
        part = read_part(path)
        mode = part.get("mode")
        limits = (
            np.full(len(part["step"]), end[TRAIN]) if mode is None else np.where(mode == EVAL, end[EVAL], end[TRAIN])
        )
        counts = part["step"] < limits
        yield {column: values[counts] for column, values in part.items()}


def _plain(values: Column, dtype: str) -> Column:
    return values.astype(str) if dtype == "U" else values.astype(dtype)
