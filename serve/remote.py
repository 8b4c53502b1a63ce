"""A server or an endpoint asked about photos, and its answers read back from their JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.errors import CloudError
from serve.refusals import Refusal

AT_ONCE = 4  # of one client: an endpoint of the smallest machine answers two at a time
AHEAD = 8 * AT_ONCE  # photos that are asked about before the first of them is told

TRIES = 5  # of a photo, where whoever is asked is busy
BUSY = (503, 504)


class BusyError(CloudError):
    """There is no answer now, and may be one later: a status of `BUSY`."""


@dataclass(frozen=True)
class RemoteAnswer:
    """What was said of one photo; see `serve.answers.Answer`.

    Attributes:
        predictions: `label`, `index` and `probability` of the likeliest classes, as many as were told.
        unsure: the likeliest class is not likely enough.
        not_one_of_these: the photo is too far from the training photos.
    """

    predictions: tuple[dict[str, Any], ...]
    unsure: bool
    not_one_of_these: bool

    def top(self, count: int) -> list[dict[str, Any]]:
        """The likeliest classes, the likeliest first: `count` of them, or as many as were told."""
        return list(self.predictions[:count])


Told = RemoteAnswer | Refusal


def read_answer(body: bytes) -> RemoteAnswer | None:
    """The answer to one photo; None where the body is none."""
    try:
        content = json.loads(body)
        predictions = tuple(
            {"label": str(row["label"]), "index": int(row["index"]), "probability": float(row["probability"])}
            for row in content["predictions"]
        )
        return RemoteAnswer(predictions, bool(content["unsure"]), bool(content["not_one_of_these"]))
    except (ValueError, TypeError, KeyError):
        return None


def read_refusal(status: int, body: str) -> Refusal | None:
    """The refusal that stands in the body of an answer 4xx or 5xx; None where there is none of ours."""
    try:
        error = json.loads(body)["error"]
        return Refusal(status, str(error["problem"]), str(error["accepted"]))
    except (ValueError, TypeError, KeyError):
        return None


def ask_all(photos: Sequence[Path], ask: Callable[[Path], Told]) -> Iterator[tuple[Path, Told]]:
    """Each photo with its answer, in order, `AT_ONCE` asked at a time; again after 1, 2, 4 and 8 s where `ask` is busy.

    Raises:
        BusyError: it was busy `TRIES` times.
    """

    def patiently(photo: Path) -> Told:
        for tried in range(TRIES - 1):
            try:
                return ask(photo)
            except BusyError:
                time.sleep(2**tried)
        return ask(photo)

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ask") as pool:
        for start in range(0, len(photos), AHEAD):
            part = photos[start : start + AHEAD]
            yield from zip(part, pool.map(patiently, part), strict=True)
