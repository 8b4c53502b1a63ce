"""What travels with a SageMaker job: a file beside its source says what to run, and names that both ends share.

The client writes `graft_job.yaml` into the source archive; the container (graft.launcher.container) reads it. The
whole configuration is in it, so that no override is lost and no limit of hyperparameters (2,500 characters) applies.
Nothing here loads torch or boto3.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from graft.errors import ConfigError

JOB_FILE = "graft_job.yaml"  # at the root of the source archive
ENTRY_SCRIPT = "launcher_entry.py"  # likewise: what the toolkit runs
VERSION = 1

# Folders of a job, as SageMaker documents them ("Amazon SageMaker AI Training Storage Folders").
BASE = PurePosixPath("/opt/ml")
CHANNELS = BASE / "input" / "data"
RUN_DIR = BASE / "checkpoints" / "run"  # what is there is kept in S3 while the job runs, and restored on a restart
TRIAL_RUN_DIR = BASE / "output" / "data" / "run"  # of a tuning job's trial: part of its own output.tar.gz
CACHE_DIR = PurePosixPath("/tmp/graft-cache")  # scratch space

PHOTOS_CHANNEL = "photos"
WEIGHTS_CHANNEL = "weights"


class Entry(Enum):
    """What a job runs: one training, or a whole search."""

    train = "train"
    tune = "tune"


@dataclass(frozen=True)
class Job:
    """What a container is to run.

    Attributes:
        entry: one training or a whole search.
        values: dotted key -> plain value of the whole configuration, enums by name, as `graft.config.flatten` has
            them: `graft.config.changed(Config(), values)` makes it again. The launcher's are the defaults (local),
            `run_dir` and `features.cache_dir` are places in the container.
        channels: dotted key -> where its value lies below the channels' folder: {"data.root": "photos",
            "model.weights": "weights/resnet50.safetensors"}. They win over `values`.
        overrides: what the command line said, for the record.
    """

    entry: Entry
    values: dict[str, Any]
    channels: dict[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()

    def placed(self, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
        """The values, with the channels' where the container has them: SM_CHANNEL_NAME, else below /opt/ml."""
        return self.values | {key: _channel_path(place, environment) for key, place in self.channels.items()}


def _channel_path(place: str, environment: Mapping[str, str]) -> str:
    channel, _, rest = place.partition("/")
    folder = environment.get(f"SM_CHANNEL_{channel.upper()}", str(CHANNELS / channel))
    return str(PurePosixPath(folder) / rest)


def write_job(job: Job) -> str:
    """The text of `graft_job.yaml`."""
    content = {
        "version": VERSION,
        **asdict(job),
        "entry": job.entry.name,
        "overrides": list(job.overrides),
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def read_job(path: Path) -> Job:
    """The job that `graft_job.yaml` describes.

    Raises:
        ConfigError: it is missing, or not one of this release.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise ConfigError(f"{path}: version {version}; accepted is {VERSION}, which this release writes")
    return Job(Entry[content["entry"]], content["values"], content["channels"], tuple(content["overrides"]))


def hyperparameter_name(key: str) -> str:
    """A dotted key as a hyperparameter: a name with a dot is no environment variable, which the toolkit makes of it."""
    return key.replace(".", "__")


def key_of_hyperparameter(name: str) -> str:
    """The dotted key that a hyperparameter stands for."""
    return name.replace("__", ".")


def is_searched(name: str) -> bool:
    """Whether a hyperparameter is a key of the configuration, not one of the toolkit or of the tuning job."""
    return not name.startswith(("sagemaker_", "_tuning_"))


def metric_line(name: str, value: float) -> str:
    """The line of the log from which SageMaker reads a metric; to be written in one write."""
    return f"graft {name}={value:.6f};\n"


def metric_regex(name: str) -> str:
    """What finds a metric's value in the log."""
    return f"graft {name}=([0-9.eE+-]+);"
