"""A server under twice the load that it can bear: what it answers, what memory it takes, and what a stop loses.

    python -m benchmarks.load --bundle MODEL.tar.gz --minutes 10

Clients send on a schedule, whether or not earlier answers have come; beside them others go away in the middle of a body
or drip it. The server must answer every request with 200 or 503, hold its memory, and lose none that it has when it is
told to stop.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.clients import Load, drive, post
from benchmarks.serving import own_server, photo, wait_until_right

CLIENTS = 120  # more than the 64 places, so that the queue is full and the rest is refused
RUDE_CLIENTS = 4
SAMPLE_SECONDS = 1.0
HEAD = b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n"


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
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="model.tar.gz")
    parser.add_argument("--minutes", type=float, default=10.0)
    given = parser.parse_args()
    body = photo((500, 375))
    with own_server(given.bundle, "serve.mode=throughput") as (port, process):
        wait_until_right(port, body)
        capacity = drive(port, body, clients=8, seconds=5).rate
        print(f"capacity: {capacity:.1f} requests/s with 8 clients", flush=True)
        memory, load = overload(port, process, body, 2 * capacity, 60 * given.minutes)
        report(load, memory)
        left = _settles(lambda: "graft_requests_inside 0.0" in metrics(port), 15)
        print(f"places freed afterwards: {'all' if left else 'NOT ALL'}", flush=True)
        sent, lost = stop_under_load(port, process, body)
        print(f"SIGTERM: {sent} requests were inside, {lost} of them lost")


def overload(port: int, process: psutil.Process, body: bytes, rate: float, seconds: float) -> tuple[Memory, Load]:
    """Offer `rate` requests/s for so long; memory and what came back."""
    memory, load, stop = Memory(), Load(), threading.Event()
    lock = threading.Lock()
    threads = [threading.Thread(target=_sample, args=(process, memory, stop))]
    threads += [threading.Thread(target=_be_rude, args=(port, stop, number % 2 == 0)) for number in range(RUDE_CLIENTS)]
    for number in range(CLIENTS):
        schedule = (number / rate, CLIENTS / rate)
        threads.append(threading.Thread(target=_send, args=(port, body, schedule, seconds, load, lock)))
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads[1 + RUDE_CLIENTS :]:
        thread.join()
    load.seconds = time.monotonic() - begun
    stop.set()
    for thread in threads[: 1 + RUDE_CLIENTS]:
        thread.join()
    return memory, load


def report(load: Load, memory: Memory) -> None:
    """What came back, in words."""
    offered = sum(load.statuses.values())
    print(f"offered {offered / load.seconds:.1f}/s for {load.seconds:.0f} s: {dict(load.statuses)}")
    print(f"answered with 200: {load.rate:.1f}/s, p50 {load.percentile(50):.0f} ms, p99 {load.percentile(99):.0f} ms")
    print(f"memory: {max(memory.samples):.0f} MB at most, {memory.growth():+.1f} % after warm-up", flush=True)


def _send(
    port: int, body: bytes, schedule: tuple[float, float], seconds: float, load: Load, lock: threading.Lock
) -> None:
    """Send at first and then every so often, at once where that is past."""
    first, every = schedule
    begun = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    due = begun + first
    while due < begun + seconds:
        time.sleep(max(0.0, due - time.monotonic()))
        asked = time.monotonic()
        status = post(connection, body)
        with lock:
            load.statuses[status] += 1
            if status == "200":
                load.milliseconds.append(1000 * (time.monotonic() - asked))
        due = max(due + every, time.monotonic())
    connection.close()


def _be_rude(port: int, stop: threading.Event, drips: bool) -> None:
    """Begin a body again and again, and go away, or drip it for a while."""
    while not stop.is_set():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(HEAD + bytes(1000))
            for _ in range(20 if drips else 1):
                client.sendall(b"x")
                if stop.wait(0.1):
                    break


def _sample(process: psutil.Process, memory: Memory, stop: threading.Event) -> None:
    while not stop.wait(SAMPLE_SECONDS):
        memory.samples.append(process.memory_info().rss / 1e6)


def stop_under_load(port: int, process: psutil.Process, body: bytes, clients: int = 16) -> tuple[int, int]:
    """SIGTERM while so many requests are inside; how many those were, and how many got no answer."""
    answers: list[str] = []

    def ask() -> None:
        answers.append(post(http.client.HTTPConnection("127.0.0.1", port, timeout=60), body))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    _settles(lambda: len(answers) + inside(port) >= clients, 10)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    return clients, sum(status not in ("200", "503") for status in answers)


def inside(port: int) -> int:
    """Requests in the server now."""
    return int(float(metrics(port).partition("\ngraft_requests_inside ")[2].split()[0]))


def metrics(port: int) -> str:
    """The text of /metrics."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


def _settles(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


if __name__ == "__main__":
    main()
