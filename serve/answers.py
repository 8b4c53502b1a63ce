"""Answers as bytes, in the form that `Accept` asks for: JSON, the original's raw logits, or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.refusals import Refusal

JSON, LOGITS, CSV = "application/json", "application/json;format=logits", "text/csv"
ACCEPTED = f"{JSON}, {LOGITS} or {CSV}"
_FORMS = {
    "application/json": JSON,
    "application/*": JSON,
    "*/*": JSON,
    "text/csv": CSV,
    "text/*": CSV,
}


@dataclass(frozen=True)
class Answer:
    """What a model says of one photo.

    Attributes:
        labels: names of the classes, by index.
        logits: float32 [C].
        probabilities: float32 [C], calibrated.
        unsure: the likeliest class is not likely enough.
        not_one_of_these: the photo is too far from the training photos.
        distance: from them; above 1 is too far. NaN where the bundle does not know it.
        photo: what the model saw, as a data: URL, where the request asks for it.
    """

    labels: tuple[str, ...]
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    unsure: bool
    not_one_of_these: bool
    distance: float
    photo: str | None = None

    def top(self, count: int) -> list[dict[str, Any]]:
        """`label`, `index` and `probability` of the likeliest classes, the likeliest first; ties by index."""
        order = np.argsort(-self.probabilities, kind="stable")[:count].tolist()
        return [
            {"label": self.labels[index], "index": index, "probability": round(float(self.probabilities[index]), 6)}
            for index in order
        ]


def write_answer(
    answers: Sequence[Answer],
    accept: str | None,
    top_k: int,
    milliseconds: float | None,
    model_id: str | None,
    *,
    many: bool = False,
) -> tuple[bytes, str]:
    """The body of a response, and its content type.

    One answer is an object; several are a list of such objects below "answers".

    Args:
        answers: one per photo of the request.
        accept: the header of the request; None and an empty one accept anything.
        top_k: how many classes JSON and CSV tell.
        milliseconds: the time that the request took; None leaves it out.
        model_id: of the manifest; None leaves it out.
        many: the request was a list, and so is the answer, also where it has one photo.

    Raises:
        Refusal: 406, nothing that `accept` names can be written.
    """
    form = choose_form(accept)
    if form == LOGITS:
        return json.dumps([answer.logits.tolist() for answer in answers]).encode(), JSON
    if form == CSV:
        return _csv(answers, top_k), CSV
    said = [_as_json(answer, top_k) for answer in answers]
    shared = {
        "model": model_id,
        "milliseconds": None if milliseconds is None else round(milliseconds, 2),
    }
    known = {name: value for name, value in shared.items() if value is not None}
    content = {**said[0], **known} if len(said) == 1 and not many else {"answers": said, **known}
    return json.dumps(content, ensure_ascii=False).encode(), JSON


def choose_form(accept: str | None) -> str:
    """Of what `Accept` lists, the form with the highest q, the first of equals (RFC 9110, section 12.5.1).

    Raises:
        Refusal: 406, none of them can be written.
    """
    wanted = [_range(part) for part in (accept or "*/*").split(",") if part.strip()] or [_range("*/*")]
    offers = [(quality, form) for quality, form in wanted if form and quality > 0]
    if not offers:
        raise Refusal(406, f"Accept: {accept} asks for what no answer can be written in", ACCEPTED)
    return max(offers, key=lambda offer: offer[0])[1]


def _range(part: str) -> tuple[float, str]:
    """Quality and form of one media range; no form where it names none of ours."""
    media, *parameters = (piece.strip().lower() for piece in part.split(";"))
    given = dict(piece.split("=", 1) for piece in parameters if "=" in piece)
    given = {name.strip(): value.strip().strip('"') for name, value in given.items()}
    form = _FORMS.get(media, "")
    if form == JSON and "format" in given:
        form = LOGITS if given["format"] == "logits" else JSON if given["format"] == "json" else ""
    try:
        return float(given.get("q", "1")), form
    except ValueError:
        return 0.0, form


def _as_json(answer: Answer, top_k: int) -> dict[str, Any]:
    said = {
        "predictions": answer.top(top_k),
        "unsure": answer.unsure,
        "not_one_of_these": answer.not_one_of_these,
    }
    return said if answer.photo is None else {**said, "photo": answer.photo}


def _csv(answers: Sequence[Answer], top_k: int) -> bytes:
    """A row per photo and class: photo, rank, label, index, probability, unsure, not_one_of_these."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["photo", "rank", "label", "index", "probability", "unsure", "not_one_of_these"])
    for photo, answer in enumerate(answers):
        doubts = [str(answer.unsure).lower(), str(answer.not_one_of_these).lower()]
        for rank, row in enumerate(answer.top(top_k), 1):
            writer.writerow([photo, rank, row["label"], row["index"], row["probability"], *doubts])
    return buffer.getvalue().encode()
