"""What the server counts, in Prometheus's text form at /metrics. A registry of its own: nothing is global."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """Counts of one server.

    Attributes:
        requests: answers by `status`. inside: requests in the server now.
        stages: seconds by `stage`: read, decode, infer (both with their waiting), total.
        photos: photos in a request that the model saw.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("graft_requests", "Answers by HTTP status.", ["status"], registry=self.registry)
        self.inside = Gauge("graft_requests_inside", "Requests in the server now.", registry=self.registry)
        self.refused = Counter("graft_refused", "Requests that found the queue full.", registry=self.registry)
        self.stages = Histogram(
            "graft_stage_seconds", "Time of a request by stage.", ["stage"], buckets=_SECONDS, registry=self.registry
        )
        self.photos = Histogram(
            "graft_batch_photos", "Photos in a request.", buckets=(1, 2, 4, 8, 16, 32), registry=self.registry
        )

    @contextlib.contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Observe how long a stage takes, whether it succeeds or not."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.stages.labels(stage).observe(time.perf_counter() - begun)

    def text(self) -> bytes:
        """All of it, as Prometheus scrapes it."""
        return generate_latest(self.registry)
