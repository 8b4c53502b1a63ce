"""What a run directory holds, read for the report: whatever is missing is empty, whatever is damaged is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from graft.artifacts import read_state
from graft.debugger.judge import judge as judge_training
from graft.debugger.records import read_records as read_training
from graft.diagnosis import Diagnosis, failing_no_run, read_diagnosis
from graft.errors import RunError
from graft.parquet import sessions
from graft.profiler.causes import judge as judge_speed
from graft.profiler.records import read_phases, read_samples, read_step_times
from graft.profiler.records import read_records as read_speed
from graft.report.losses import Course, read_course
from graft.report.predictions import Prediction, read_predictions

T = TypeVar("T")


@dataclass(frozen=True)
class RunFiles:
    """The files of one run.

    Attributes:
        path: of its directory.
        state: `state`, `reason` and `at` of run.json.
        config: the composed configuration, nested; empty where there is none.
        config_text: the same as it was written.
        metrics: flat metric -> number.
        evaluation: split -> temperature, accuracy per class, confused pairs.
        data: what the checks of the photos found, and their counts.
        environment: code, packages, hardware.
        predictions: of the evaluated splits.
        course: of the cross-entropy.
        samples: of utilisation, column -> values by sample; empty where the profiler did not run.
        phases: name -> seconds of the run; likewise.
        step_ms: phase of a training step, and `step` for the whole -> percentile -> milliseconds; likewise.
        debugger: what its rules found, of a run that is not finished by now; None where they did not run.
        profiler: likewise.
        damaged: a sentence for each file that could not be read.
    """

    path: Path
    state: dict[str, str]
    config: dict[str, Any]
    config_text: str
    metrics: dict[str, float]
    evaluation: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, Any]
    predictions: tuple[Prediction, ...]
    course: Course
    samples: dict[str, NDArray[np.float64]]
    phases: dict[str, float]
    step_ms: dict[str, dict[str, float]]
    debugger: Diagnosis | None
    profiler: Diagnosis | None
    damaged: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.state.get("state") == "finished"

    def setting(self, key: str) -> Any:
        """The value of a dotted key; None where the run's configuration has none."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


class Reader:
    """Reads files of a directory and keeps a sentence for each that is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged: list[str] = []

    def take(self, name: str, read: Callable[[Path], T], absent: T) -> T:
        """What `read` makes of a file or folder; `absent` where it is not there or damaged."""
        place = self.path / name
        if not place.exists():
            return absent
        try:
            return read(place)
        except (RunError, OSError, ValueError) as error:
            self.damaged.append(f"{name} cannot be read: {error}")
            return absent

    def findings(self, folder: str, finished: bool, judge: Callable[[], Diagnosis]) -> Diagnosis | None:
        """What the rules of a folder of records found; None where they did not run.

        A run that is not finished is judged anew: what lies there may be of an earlier process, before it went on.
        """
        name, found = f"{folder}/findings.json", None
        if not sessions(self.path / folder) or (finished and (self.path / name).exists()):
            return self.take(name, read_findings, None)
        with failing_no_run(f"{folder}/", self.damaged.append):
            found = judge()
        return found

    def json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file; an empty one where it is not there or damaged."""
        absent: dict[str, Any] = {}
        return self.take(name, read_json, absent)


def read_run(path: Path) -> RunFiles:
    """All that the report shows of a run, whatever its state."""
    reader, no_config, state = Reader(path), dict[str, Any](), read_state(path)
    finished = state.get("state") == "finished"
    no_samples, no_phases = dict[str, NDArray[np.float64]](), dict[str, float]()
    no_steps = dict[str, dict[str, float]]()
    return RunFiles(
        path=path,
        state=state,
        config=reader.take("config.yaml", read_yaml, no_config),
        config_text=reader.take("config.yaml", read_text, ""),
        metrics=reader.json("metrics.json"),
        evaluation=reader.json("evaluation.json"),
        data=reader.json("data.json"),
        environment=reader.json("environment.json"),
        predictions=reader.take("predictions.csv", read_predictions, ()),
        course=reader.take("", read_course, Course({}, {})),
        samples=reader.take("profiler", lambda _: read_samples(path), no_samples),
        phases=reader.take("profiler", lambda _: read_phases(path), no_phases),
        step_ms=reader.take("profiler", lambda _: read_step_times(path), no_steps),
        debugger=reader.findings("debugger", finished, lambda: judge_training(read_training(path))),
        profiler=reader.findings("profiler", finished, lambda: judge_speed(read_speed(path))),
        damaged=tuple(reader.damaged),
    )


def read_text(path: Path) -> str:
    """The text of a file."""
    return path.read_text(encoding="utf-8", errors="replace")


def read_findings(path: Path) -> Diagnosis | None:
    """See `read_diagnosis`."""
    return read_diagnosis(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: it holds something else.
    """
    return _object(json.loads(read_text(path)))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: it holds something else.
    """
    try:
        return _object(yaml.safe_load(read_text(path)))
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from error


def _object(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not an object")
    return content
