"""A server under twice the load that it can bear: what it answers, what memory it takes, and what a stop loses.

    python -m benchmarks.load --bundle MODEL.tar.gz --minutes 10

Requests are sent when they are due, each on a connection of its own, however many are unanswered; milliseconds count
from when a request was due. Beside them clients go away in the middle of a body, or drip it until they are cut off.
Ends with 1 unless every request is answered with 200 or 503, the 99th percentile of those with 200 is below the
deadline, memory grows by at most 5 %, every place is free again afterwards, and a SIGTERM under the same load loses no
request that the server had.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from benchmarks.clients import drive
from benchmarks.serving import own_server, photo, wait_until_answered
from graft.config import ServeConfig

SENDERS = 400  # requests on their way at once: the server's places, and time for the refused ones
RUDE_CLIENTS = 4
SAMPLE_SECONDS = 1.0
MOST_GROWTH = 5.0  # percent
ANSWERED = ("200", "503")
# What was sent this long before the SIGTERM was read by then: a busy server may leave a connection waiting for a while.
SURELY_INSIDE_SECONDS = 1.0
HEAD = b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n"


@dataclass(frozen=True)
class Sent:
    """A request: when it was due, sent in full (infinite: never) and over, in seconds of one clock; what came of it."""

    due: float
    sent: float
    over: float
    status: str


@dataclass
class Memory:
    """MB of a process, one number each SAMPLE_SECONDS."""

    samples: list[float] = field(default_factory=list)

    def growth(self) -> float:
        """Of the last tenth's mean over the mean of the tenth after the first, in percent."""
        tenth = max(len(self.samples) // 10, 1)
        early, late = self.samples[tenth : 2 * tenth], self.samples[-tenth:]
        return 100 * (sum(late) / len(late) / (sum(early) / len(early)) - 1)


def main() -> None:
    """Measure, print and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="model.tar.gz")
    parser.add_argument("--minutes", type=float, default=10.0)
    given = parser.parse_args()
    body = photo((500, 375))
    with own_server(given.bundle, "serve.mode=throughput") as (port, process):
        wait_until_answered(port, body)
        drive(port, body, clients=8, seconds=5)
        capacity = drive(port, body, clients=8, seconds=15).rate
        print(f"capacity: {capacity:.1f} requests/s with 8 clients", flush=True)
        with sampled(process) as memory, rude_clients(port):
            sent = offer(port, body, 2 * capacity, 60 * given.minutes)
        faults = report(sent, memory, capacity)
        free = settles(lambda: "graft_requests_inside 0.0" in metrics(port), ServeConfig().deadline + 5)
        print(f"places free again afterwards: {'all' if free else 'NOT ALL'}", flush=True)
        faults += [] if free else ["places are taken for ever"]
        faults += stop_under_load(port, process, body, 2 * capacity)
    print("; ".join(faults) or "all of it holds")
    sys.exit(1 if faults else 0)


def offer(
    port: int, body: bytes, rate: float, seconds: float, at: tuple[float, Callable[[], None]] | None = None
) -> list[Sent]:
    """Send `rate` requests/s for so long, each when it is due.

    Args:
        port: of the server.
        body: a photo.
        rate: requests/s.
        seconds: how long.
        at: after so many seconds this is called, beside the sending.
    """
    futures: list[Future[Sent]] = []
    begun = time.monotonic()
    if at is not None:
        threading.Timer(*at).start()
    with ThreadPoolExecutor(SENDERS, "send") as senders:
        for number in range(int(rate * seconds)):
            due = begun + number / rate
            time.sleep(max(0.0, due - time.monotonic()))
            futures.append(senders.submit(send, port, body, due))
    return [future.result() for future in futures]


def send(port: int, body: bytes, due: float) -> Sent:
    """One request on a connection of its own."""
    sent = float("inf")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        try:
            connection.request("POST", "/invocations", body, {"Content-Type": "image/jpeg"})
            sent = time.monotonic()
            response = connection.getresponse()
            response.read()
            status = str(response.status)
        except (OSError, http.client.HTTPException) as error:
            status = type(error).__name__
    return Sent(due, sent, time.monotonic(), status)


def report(sent: list[Sent], memory: Memory, capacity: float) -> list[str]:
    """Print what came back; what is not as it must be."""
    seconds = sent[-1].due - sent[0].due
    rate = (len(sent) - 1) / seconds
    statuses = Counter(one.status for one in sent)
    late = [1000 * (one.over - one.due) for one in sent if one.status == "200"]
    middle, last = (float(np.percentile(late, share)) if late else float("nan") for share in (50, 99))
    growth = memory.growth()
    print(f"offered {rate:.1f}/s for {seconds:.0f} s: {dict(statuses)}")
    print(f"answered with 200: {len(late) / seconds:.1f}/s, p50 {middle:.0f} ms, p99 {last:.0f} ms")
    print(f"memory: {max(memory.samples):.0f} MB at most, {growth:+.1f} % after warm-up", flush=True)
    wrong = {
        f"offered {rate / capacity:.2f} of the capacity, not 2": rate < 1.98 * capacity,
        "not every request was answered with 200 or 503": not set(statuses) <= set(ANSWERED),
        "nothing was answered with 200": not late,
        f"p99 of {last:.0f} ms is beyond the deadline": last > 1000 * ServeConfig().deadline,
        f"memory grew by {growth:.1f} %": growth > MOST_GROWTH,
    }
    return [words for words, is_so in wrong.items() if is_so]


def stop_under_load(port: int, process: psutil.Process, body: bytes, rate: float) -> list[str]:
    """SIGTERM while so many requests/s come; what is not as it must be."""
    stopped: list[float] = []

    def stop() -> None:
        stopped.append(time.monotonic())
        process.send_signal(signal.SIGTERM)

    sent = offer(port, body, rate, 12, at=(10, stop))
    before = [one for one in sent if one.sent < stopped[0] - SURELY_INSIDE_SECONDS]
    inside = [one for one in before if one.over > stopped[0]]
    lost = [one for one in before if one.status not in ANSWERED]
    refused = sum(one.status not in ANSWERED for one in sent) - len(lost)
    print(f"SIGTERM: {len(inside)} requests inside, {len(lost)} lost; {refused} came too late to be taken")
    return [f"a stop lost {len(lost)} requests"] if lost else []


@contextlib.contextmanager
def sampled(process: psutil.Process) -> Iterator[Memory]:
    """The memory (RSS) of a process while the context lasts."""
    memory, done = Memory(), threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            memory.samples.append(process.memory_info().rss / 1e6)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield memory
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def rude_clients(port: int) -> Iterator[None]:
    """Clients that begin a body again and again: half of them go away, half drip it until they are cut off."""
    done = threading.Event()

    def be_rude(drips: bool) -> None:
        while not done.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60) as client:
                client.sendall(HEAD + bytes(1000))
                while drips and not done.wait(0.1):
                    client.sendall(b"x")  # an OSError once the server has had enough
            done.wait(0.1)

    threads = [threading.Thread(target=be_rude, args=(number % 2 == 0,)) for number in range(RUDE_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def metrics(port: int) -> str:
    """The text of /metrics."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


def settles(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether something becomes so within a time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


if __name__ == "__main__":
    main()
