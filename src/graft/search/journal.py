"""The journal: a file of trials, appended by any number of processes of one machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from filelock import FileLock

if TYPE_CHECKING:
    from optuna.storages import JournalStorage


class KernelLock:
    """Optuna's `BaseJournalFileLock` by the kernel, which frees it when its holder is killed.

    Optuna's own two are files that a killed process leaves behind: the next one waits 30 s for them.
    """

    def __init__(self, journal: Path) -> None:
        self._lock = FileLock(f"{journal}.lock", thread_local=False)

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire(poll_interval=0.002)
        return True

    def release(self) -> None:
        """Give it back."""
        self._lock.release()


def cut_torn_line(file: BinaryIO) -> None:
    """Go to the end of a journal, without the last line where a full disk or a power failure left but a part of it.

    Readers pass over a part at the end; a whole line after it would make the journal unreadable for good.
    """
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def open_journal(path: Path) -> JournalStorage:
    """Optuna's storage over a journal file, made where there is none."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    class Journal(JournalFileBackend):
        # Optuna's waits for the disk at every line, 3 ms of the 4 that one costs, with eight lines to a trial. What is
        # written is safe from a kill without that; a power failure may cost the last trials, which then run again.
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
            lock.acquire()
            try:
                with path.open("r+b") as file:
                    cut_torn_line(file)
                    file.write(lines.encode())
            finally:
                lock.release()

    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    lock = KernelLock(path)
    # it has the two methods of Optuna's abstract class, which would have to be imported with the module
    return JournalStorage(Journal(str(path), lock))  # type: ignore[arg-type]
