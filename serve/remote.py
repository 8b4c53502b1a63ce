"""What a server or an endpoint answers, read back from its JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from serve.refusals import Refusal


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
