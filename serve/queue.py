"""The way of a request through the server: a bounded number inside, decoding beside inference, one deadline."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from simplejpeg import encode_jpeg  # type: ignore[import-untyped]

from graft.images import Pixels
from graft.inputs import InputSpec
from serve.answers import Answer
from serve.layout import Layout
from serve.metrics import Metrics
from serve.reading import Fetch, Limits, Photos, decode, read_entries
from serve.refusals import Refusal

T = TypeVar("T")


class Model(Protocol):
    """What the server needs of a model; `serve.model.ServedModel` is one."""

    @property
    def spec(self) -> InputSpec:
        """What it expects of a photo."""

    @property
    def model_id(self) -> str:
        """Of the run that made it."""

    def predict(self, images: Pixels) -> list[Answer]:
        """Answers for uint8 [B, S, S, 3]."""

    def check_remaining(self) -> None:
        """Check what was left to check of it, while it answers already; raises where it must not go on."""


class Queue:
    """Takes requests in, and their photos through decoding and the model.

    Args:
        places: requests inside at once. It bounds memory: each holds at most a body and its photos.
        layout: the threads.
        metrics: what is counted.
    """

    def __init__(self, places: int, layout: Layout, metrics: Metrics) -> None:
        self.places, self.metrics, self.inside = places, metrics, 0
        self._decoders = ThreadPoolExecutor(layout.decoders, "decode")
        self._engine = ThreadPoolExecutor(layout.streams, "infer")
        # Fetching waits for others: it must not keep a decoder busy.
        self._fetchers = ThreadPoolExecutor(8, "fetch")

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place inside, for as long as the context lasts; Refusal 503 where there is none."""
        if self.inside >= self.places:
            self.metrics.refused.inc()
            raise Refusal(503, f"{self.inside} requests are waiting already", "try again", retry_after=1)
        self.inside += 1
        self.metrics.inside.set(self.inside)
        try:
            yield
        finally:
            self.inside -= 1
            self.metrics.inside.set(self.inside)

    async def photos(self, body: bytes, content_type: str | None, limits: Limits, fetch: Fetch | None) -> Photos:
        """The encoded photos of a body. Raises Refusal."""
        read = partial(read_entries, addresses=fetch is not None)
        entries = await _run(self._decoders, read, body, content_type, limits)
        return await _run(self._fetchers, entries.photos, fetch) if entries.to_fetch else entries.photos()

    async def answers(
        self, model: Model, photos: Sequence[bytes], limits: Limits, *, shown: bool = False
    ) -> list[Answer]:
        """What the model says of the photos; with what it saw of them, where they are `shown`.

        Raises:
            Refusal: one of them cannot be decoded.
        """
        with self.metrics.time("decode"):
            squares = await _all(_run(self._decoders, decode, photo, model.spec, limits) for photo in photos)
        self.metrics.photos.observe(len(squares))
        with self.metrics.time("infer"):
            # One by one: together they gain little on a CPU, and take the memory of as many.
            answers = await _all(_run(self._engine, model.predict, square[np.newaxis]) for square in squares)
        told = [answer for (answer,) in answers]
        return await _run(self._decoders, _with_photos, told, squares) if shown else told

    def close(self) -> None:
        """Let the threads go; what has not begun is dropped."""
        for executor in (self._decoders, self._engine, self._fetchers):
            executor.shutdown(wait=False, cancel_futures=True)


def _with_photos(answers: Sequence[Answer], squares: Sequence[Pixels]) -> list[Answer]:
    """The answers with the squares uint8 [S, S, 3] that they are about."""
    encoded = (base64.b64encode(encode_jpeg(np.ascontiguousarray(square))).decode() for square in squares)
    urls = (f"data:image/jpeg;base64,{text}" for text in encoded)
    return [replace(answer, photo=url) for answer, url in zip(answers, urls, strict=True)]


async def _run(executor: Executor, function: Callable[..., T], *arguments: object) -> T:
    """Run in a thread; cancelling drops what has not begun."""
    return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)


async def _all(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order; where one fails, those that have not begun are dropped: their request has its answer."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
