"""Clients that ask a server as fast as it answers, and what it cost: the load generator of the serving benchmarks.

Threads with http.client on kept-alive connections: it takes 0.2 ms of processor a request beside a server's 10 to 80,
while Locust takes as much as the fastest of these servers on the same two cores, and wrk cannot be installed by pip.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
import psutil


@dataclass
class Load:
    """What clients saw: milliseconds of the requests answered with 200, and how many were answered with what."""

    seconds: float = 0.0
    milliseconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Requests/s that were answered with 200."""
        return len(self.milliseconds) / self.seconds

    @property
    def errors(self) -> int:
        """Requests that were answered with something else, or with nothing."""
        return sum(count for status, count in self.statuses.items() if status != "200")

    def percentile(self, share: float) -> float:
        """Milliseconds within which `share` percent were answered; NaN where none was."""
        return float(np.percentile(self.milliseconds, share)) if self.milliseconds else float("nan")


def drive(port: int, body: bytes, clients: int, seconds: float) -> Load:
    """Let so many clients post a photo again and again; a client that gets 503 waits 0.1 s."""
    load, lock = Load(), threading.Lock()
    begun = time.perf_counter()

    def ask() -> None:
        own = Load()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.perf_counter() - begun < seconds:
            asked = time.perf_counter()
            status = _post(connection, body)
            own.statuses[status] += 1
            if status == "200":
                own.milliseconds.append(1000 * (time.perf_counter() - asked))
            else:
                time.sleep(0.1)
        connection.close()
        with lock:
            load.milliseconds += own.milliseconds
            load.statuses += own.statuses

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds = time.perf_counter() - begun
    return load


def _post(connection: http.client.HTTPConnection, body: bytes) -> str:
    """The status of the answer, or the kind of error."""
    try:
        connection.request("POST", "/invocations", body, {"Content-Type": "image/jpeg"})
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return type(error).__name__
    return str(response.status)


@dataclass
class Cost:
    """What processes took: seconds of processor, and the most memory (MB) that they held together.

    Memory is PSS: a page that several share counts once.
    """

    seconds: float = 0.0
    megabytes: float = 0.0


@contextmanager
def watched(process: psutil.Process, every: float = 0.5) -> Iterator[Cost]:
    """The cost of a process and its children while the context lasts."""
    cost, done = Cost(), threading.Event()

    def watch() -> None:
        while not done.wait(every):
            cost.megabytes = max(cost.megabytes, _megabytes(process))

    before = _cpu_seconds(process)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield cost
    finally:
        done.set()
        watcher.join()
        cost.seconds = _cpu_seconds(process) - before


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _cpu_seconds(process: psutil.Process) -> float:
    return float(sum(one.cpu_times().user + one.cpu_times().system for one in _tree(process)))


def _megabytes(process: psutil.Process) -> float:
    held = 0
    for one in _tree(process):
        with suppress(psutil.NoSuchProcess):  # a worker that ended just now
            held += one.memory_full_info().pss
    return held / 1e6
