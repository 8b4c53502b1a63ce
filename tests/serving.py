"""A server for tests: a model that answers by colour, in a thread, on a free port of 127.0.0.1."""

from __future__ import annotations

import contextlib
import http.client
import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import uvicorn
from PIL import Image

from graft.images import Pixels
from graft.inputs import InputSpec
from serve.answers import Answer
from serve.app import Service
from serve.layout import Layout
from serve.metrics import Metrics
from serve.queue import Model, Queue
from serve.reading import Limits
from serve.server import make_server

LABELS = ("red", "green", "blue")


class ColourModel:
    """Tells a photo's strongest channel; grey is unsure, black is none of these."""

    spec = InputSpec(image_size=32, resize=36)
    labels = LABELS
    model_id = "colours-1"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def predict(self, images: Pixels) -> list[Answer]:
        time.sleep(self.seconds)
        return [self._answer(means) for means in images.mean((1, 2)).astype(np.float32)]

    def check_remaining(self) -> None:
        pass

    def _answer(self, means: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Answer:
        exponents = np.exp((means - means.max()) / 40)
        probabilities = (exponents / exponents.sum()).astype(np.float32)
        unsure, nothing = bool(probabilities.max() < 0.5), bool(means.max() < 10)
        return Answer(LABELS, means, probabilities, unsure, nothing, 2.0 if nothing else 0.5)


def photo(colour: str = "red", form: str = "JPEG", size: tuple[int, int] = (60, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, form)
    return buffer.getvalue()


@dataclass
class Running:
    """A server that is running; `service` may be changed while it does."""

    service: Service
    server: uvicorn.Server
    port: int

    def ask(
        self, path: str = "/invocations", body: bytes | None = None, method: str | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers (names in lower case) of one request; `content_type=` is Content-Type."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(connection):
            connection.request(method or ("GET" if body is None else "POST"), path, body, named)
            response = connection.getresponse()
            answered = {name.lower(): value for name, value in response.getheaders()}
            return response.status, response.read(), answered


@contextlib.contextmanager
def running(
    load: Callable[[], Model] = ColourModel,
    *,
    places: int = 8,
    deadline: float = 10.0,
    limits: Limits | None = None,
    patience: float = 10.0,
    connections: int = 100,
) -> Iterator[Running]:
    """A server that has tried to load its model."""
    queue = Queue(places, Layout(threads=1, streams=1, decoders=2), Metrics())
    service = Service(load, queue, limits or Limits(body=100_000, pixels=1_000_000, frames=3, photos=4), deadline)
    server = make_server(service, "127.0.0.1", 0, patience, connections)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started and (service.model or service.failure) is not None)
        yield Running(service, server, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


def wait_for(condition: Callable[[], bool], seconds: float = 10.0, pause: float = 0.01) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(pause)
