"""One machine of a training job: a folder laid out as /opt/ml, and the toolkit's `train` as a process in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.aws.account import environment

FOLDERS = ("input/config", "input/data", "model", "output/data", "checkpoints", "code", "tmp")


class Machine:
    """A machine as a job sees it; `base` stands for /opt/ml, and is emptied first."""

    def __init__(self, base: Path, hosts: list[str], host: str) -> None:
        self.base, self.hosts, self.host = base, hosts, host
        self.process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
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
        self.process = subprocess.Popen(
            [str(program)],
            cwd=self.base,
            env={**environment(url), **own, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self.process, tell), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str], tell: Callable[[str], None]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                tell(line.rstrip("\n"))

    @property
    def exit_code(self) -> int | None:
        """Of `train`; None while it runs."""
        return self.process.poll() if self.process else None

    def terminate(self) -> None:
        """Tell `train` to stop, as the service tells a container's first process."""
        if self.process and self.exit_code is None:
            self.process.terminate()

    def end(self) -> None:
        """Kill whatever is left, as the end of a container does, and read what it said."""
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        if self.process:
            self.process.wait()
        if self._reader:
            self._reader.join(timeout=10)

    def processes(self) -> list[psutil.Process]:
        """All that the job started: they have inherited where its files lie."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SAGEMAKER_BASE_DIR") == str(self.base):
                    found.append(process)
            except psutil.Error:
                continue
        return found

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
