"""A process of the local AWS, its output, and its end together with all that it started."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil


class Job:
    """A process whose lines go to `tell`; those that it starts inherit the value of `marker`, and end with it."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        marker: str,
        tell: Callable[[str], None],
    ) -> None:
        self._marker, self._value = marker, environment[marker]
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(tell,), daemon=True)
        self._reader.start()

    def _read(self, tell: Callable[[str], None]) -> None:
        assert self._process.stdout is not None
        with self._process.stdout:
            for line in self._process.stdout:
                tell(line.rstrip("\n"))

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Send SIGTERM to it alone, as a container's first process gets it."""
        if self.exit_code is None:
            self._process.terminate()

    def end(self) -> None:
        """Kill whatever is left, as the end of a container does, and read what it said."""
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait()
        self._reader.join(timeout=10)

    def processes(self) -> list[psutil.Process]:
        """It and all that it started."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(self._marker) == self._value:
                    found.append(process)
            except psutil.Error:
                continue
        return found
