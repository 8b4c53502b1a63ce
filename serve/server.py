"""The server as a process: uvicorn around serve/app.py, with its threads, limits and logs from the configuration.

One process: uvicorn's workers share connections unevenly (eight on one of two, docs/decisions/0015).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve.access import JsonLines
from serve.app import Service, create_app
from serve.layout import lay_out
from serve.metrics import Metrics
from serve.queue import Model, Queue
from serve.reading import Fetch, Limits

if TYPE_CHECKING:
    from graft.config import ServeConfig

# SageMaker kills 30 s after SIGTERM; what is inside has this long to be answered.
DRAIN_SECONDS = 25
# A head of a few hundred bytes, or the rest of a body that was refused, that takes longer is held back on purpose.
PATIENCE_SECONDS = 10.0
# Idle connections cost memory too, and files: a process may have 1024 open. Beyond these, the one that has been idle
# the longest is closed. uvicorn's limit_concurrency would answer everybody with 503 instead, SageMaker's /ping too.
CONNECTIONS = 900
FETCH_SECONDS = 10.0
# Beyond the 60 s for which load balancers keep idle connections, so that they close first, not us.
KEEP_ALIVE_SECONDS = 65


def run(config: ServeConfig, load: Callable[[], Model]) -> None:
    """Serve what `load` gives until SIGTERM or Ctrl-C; what is inside is answered first."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    make_server(make_service(config, load), config.host, config.port).run()


def make_service(config: ServeConfig, load: Callable[[], Model]) -> Service:
    """What answers; `load` is called once it listens."""
    layout = lay_out(config.mode.value, config.threads)
    limits = Limits(body=config.max_bytes, pixels=config.max_pixels, photos=config.max_photos)
    return Service(
        load=load,
        queue=Queue(config.queue, layout, Metrics()),
        limits=limits,
        deadline=config.deadline,
        top_k=config.top_k,
        begin_fetching=_fetching(limits, config.url_hosts) if config.allow_url else None,
    )


def _fetching(limits: Limits, hosts: list[str]) -> Callable[[], Fetch]:
    from serve.fetching import Fetcher  # TLS takes a while to import

    return Fetcher(limits.body, FETCH_SECONDS, hosts=hosts).begin


def make_server(
    service: Service, host: str, port: int, patience: float = PATIENCE_SECONDS, most: int = CONNECTIONS
) -> uvicorn.Server:
    """A server that is not running yet: `run` blocks, and ends on SIGTERM or once `should_exit` is set."""

    class Protocol(ImpatientProtocol):
        seconds = patience
        connections_at_most = most

    return uvicorn.Server(
        uvicorn.Config(
            create_app(service),
            host=host,
            port=port,
            http=Protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
    )


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, that also closes connections whose bytes do not come: it has no such limit.

    Waited for are the head of a request, and the rest of a body that was answered before it had come. A body that is
    being read is the application's to wait for.

    And it closes the connection that has been idle the longest where there are too many: those at work are bounded by
    the places inside.
    """

    seconds = PATIENCE_SECONDS
    connections_at_most = CONNECTIONS
    idle_since = 0.0
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room, and begin to wait for the first head."""
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        if len(self.connections) > self.connections_at_most:
            self._make_room()
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Begin to wait with the first bytes of a head, and stop once what was waited for is whole."""
        super().data_received(data)
        if self._is_owed():
            self._wait()
        else:
            self._stop()

    def on_response_complete(self) -> None:
        """Begin to wait for what is left of the body."""
        self.idle_since = self.loop.time()
        super().on_response_complete()
        if self._is_owed():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is being answered, and it is not being closed yet."""
        # uvicorn declares it to be there always; before the first request it is not.
        answered = self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr]
        return answered and not self.transport.is_closing()

    def _make_room(self) -> None:
        """Close the connection that has been idle the longest; where all others are at work, that is this one."""
        others = [other for other in self.connections if isinstance(other, ImpatientProtocol) and other.is_idle]
        min(others, key=lambda other: other.idle_since).transport.close()

    def _is_owed(self) -> bool:
        """Whether the client has begun what nobody but this protocol waits for."""
        if self.conn.their_state is h11.IDLE:
            return bool(self.conn.trailing_data[0])
        return self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE

    def _wait(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(self.seconds, self.transport.close)

    def _stop(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
