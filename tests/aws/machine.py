"""One machine of a training job: a folder laid out as /opt/ml, and the toolkit's `train` as a process in it."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.aws.account import environment
from tests.aws.process import Job

FOLDERS = ("input/config", "input/data", "model", "output/data", "checkpoints", "code", "tmp")


class Machine:
    """A machine as a job sees it; `base` stands for /opt/ml, and is emptied first."""

    def __init__(self, base: Path, hosts: list[str], host: str) -> None:
        self.base, self.hosts, self.host = base, hosts, host
        self.process: Job | None = None
        shutil.rmtree(base, ignore_errors=True)
        for folder in FOLDERS:
            (base / folder).mkdir(parents=True)

    def write_settings(self, hyperparameters: Mapping[str, str], channels: Mapping[str, Any]) -> None:
        """The files below input/config, as the service writes them."""
        resources = {"current_host": self.host, "hosts": self.hosts, "network_interface_name": "lo"}
        contents = {
            "hyperparameters": hyperparameters,
            "inputdataconfig": channels,
            "resourceconfig": resources,
        }
        for name, content in contents.items():
            (self.base / "input" / "config" / f"{name}.json").write_text(json.dumps(content))

    def start(self, program: Path, url: str, name: str, more: Mapping[str, str], tell: Callable[[str], None]) -> None:
        """Start the toolkit's `train`; each line that it prints goes to `tell`."""
        own = {
            "HOME": str(self.base / "tmp"),
            "TMPDIR": str(self.base / "tmp"),
            "SAGEMAKER_BASE_DIR": str(self.base),
            # Hosts are addresses of this machine, which need no look-up.
            "SM_STUDIO_LOCAL_MODE": "true",
            "TRAINING_JOB_NAME": name,
            "PYTHONUNBUFFERED": "1",
            # What requirements.txt names is there already, and if not, the network is not asked.
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        }
        environ = {**environment(url), **own, **more}
        self.process = Job([str(program)], self.base, environ, "SAGEMAKER_BASE_DIR", tell)

    @property
    def exit_code(self) -> int | None:
        """Of `train`; None while it runs."""
        return self.process.exit_code if self.process else None

    def failure(self) -> str:
        """What the job says of its failure; the service takes no more of it."""
        path = self.base / "output" / "failure"
        return path.read_text(errors="replace")[:1024] if path.exists() else ""

    def archive(self, folder: str) -> Path | None:
        """A folder as tar.gz; None where it is empty."""
        source = self.base / folder
        entries = sorted(source.iterdir())
        if not entries:
            return None
        path = self.base / "tmp" / f"{source.name}.tar.gz"
        with tarfile.open(path, "w:gz", compresslevel=1) as tar:
            for entry in entries:
                tar.add(entry, entry.name)
        return path
