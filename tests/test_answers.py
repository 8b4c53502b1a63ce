"""Answers as bytes: the three forms, known probabilities, and what `Accept` may say."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from serve.answers import Answer, choose_form, write_answer
from serve.refusals import Refusal

LOGITS = "application/json;format=logits"
SURE = Answer(
    ("akita", "böxer", "collie"),
    np.array([0.5, 2.0, -1.0], np.float32),
    np.array([0.25, 0.625, 0.125], np.float32),
    unsure=False,
    not_one_of_these=False,
    distance=0.5,
)
FAR = Answer(SURE.labels, -SURE.logits, np.full(3, 1 / 3, np.float32), True, True, math.nan)


def test_json_tells_the_likeliest_first_and_what_is_shared_once() -> None:
    body, kind = write_answer([SURE], None, 2, 12.3456, "m1")
    assert kind == "application/json"
    assert json.loads(body) == {
        "predictions": [
            {"label": "böxer", "index": 1, "probability": 0.625},
            {"label": "akita", "index": 0, "probability": 0.25},
        ],
        "unsure": False,
        "not_one_of_these": False,
        "model": "m1",
        "milliseconds": 12.35,
    }


def test_several_photos_are_a_list_of_answers() -> None:
    said = json.loads(write_answer([SURE, FAR], "application/json", 1, 1.0, "m1")[0])
    assert [answer["unsure"] for answer in said["answers"]] == [False, True]
    # Of equal probabilities the first class stands first.
    assert said["answers"][1]["predictions"] == [{"label": "akita", "index": 0, "probability": 0.333333}]
    assert (said["model"], said["milliseconds"]) == ("m1", 1.0)


def test_what_is_not_known_is_left_out() -> None:
    assert set(json.loads(write_answer([SURE], "", 5, None, None)[0])) == {"predictions", "unsure", "not_one_of_these"}


def test_logits_are_what_the_original_answered() -> None:
    body, kind = write_answer([SURE, FAR], LOGITS, 5, 1.0, "m1")
    assert (json.loads(body), kind) == ([[0.5, 2.0, -1.0], [-0.5, -2.0, 1.0]], "application/json")


def test_csv_has_a_row_for_each_photo_and_class() -> None:
    body, kind = write_answer([SURE, FAR], "text/csv", 1, 1.0, "m1")
    assert kind == "text/csv"
    assert body.decode() == (
        "photo,rank,label,index,probability,unsure,not_one_of_these\n"
        "0,1,böxer,1,0.625,false,false\n"
        "1,1,akita,0,0.333333,true,true\n"
    )


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, "application/json"),
        ("", "application/json"),
        (" , ", "application/json"),
        ("*/*", "application/json"),
        ("Application/JSON; charset=utf-8", "application/json"),
        ('application/json ; Format="LOGITS"', LOGITS),
        ("application/json;format=json", "application/json"),
        ("text/*", "text/csv"),
        ("text/html, text/csv;q=0.9, */*;q=0.1", "text/csv"),
        ("application/json;q=0.2, text/csv;q=0.8", "text/csv"),
        ("application/json;q=0, text/csv", "text/csv"),
        ("text/csv, application/json", "text/csv"),
    ],
)
def test_accept_chooses_the_form(accept: str | None, form: str) -> None:
    assert choose_form(accept) == form


@pytest.mark.parametrize(
    "accept", ["text/html", "application/json;q=0", "image/*", "application/json;q=much", "application/json;format=xml"]
)
def test_what_cannot_be_written_is_refused(accept: str) -> None:
    with pytest.raises(Refusal) as refused:
        choose_form(accept)
    assert refused.value.status == 406
    assert refused.value.problem == f"Accept: {accept} asks for what no answer can be written in"
    assert refused.value.accepted == "application/json, application/json;format=logits or text/csv"
