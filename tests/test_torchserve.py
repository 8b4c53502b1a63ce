"""The packed model under AWS's PyTorch serving stack: what the handler answers there, to whom, and what never leaks."""

from __future__ import annotations

import csv
import http.client
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.torchserve import ENVIRONMENT, Stack, running_stack
from serve.archive import ENTRY, unpack
from tests.test_inputs import ANY, INPUTS, documented, mutations

pytestmark = pytest.mark.torchserve
# The limits that tests/test_inputs.py is about, and something on which the engine fails; all else is as it was packed.
CHANGED = """
from serve import handler
from serve.reading import Limits

handler.LIMITS = Limits(body=100_000, pixels=1_000_000, frames=3, photos=4)
predict = handler.predict_fn


def predict_or_fail(photos, model):
    if b"fail" in photos:
        raise RuntimeError("an engine's own words")
    return predict(photos, model)


handler.predict_fn = predict_or_fail
"""


@pytest.fixture(scope="module")
def stack(packed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    base = tmp_path_factory.mktemp("opt-ml")
    unpack(packed_run / "model.tar.gz", base / "model")
    (base / "model" / "code" / "inference.py").write_text(ENTRY + CHANGED)
    with running_stack(base, Path(os.environ[ENVIRONMENT])) as started:
        yield started


@pytest.fixture(scope="module")
def photos(packed_run: Path) -> list[tuple[bytes, str]]:
    """Photos of test, and what the run itself said of them."""
    rows = csv.DictReader((packed_run / "predictions.csv").read_text().splitlines())
    return [(Path(row["path"]).read_bytes(), row["class_1"]) for row in rows if row["split"] == "test"]


def ask(stack: Stack, body: bytes, content_type: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=60)
    try:
        connection.request("POST", "/invocations", body, {"Content-Type": content_type, **headers})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_photos_are_answered_as_the_run_answered_them(stack: Stack, photos: list[tuple[bytes, str]]) -> None:
    for photo, label in photos:
        status, body = ask(stack, photo, "image/jpeg")
        assert (status, json.loads(body)["predictions"][0]["label"]) == (200, label)


def test_boto3_is_answered(stack: Stack, photos: list[tuple[bytes, str]]) -> None:
    photo, label = photos[0]
    answer = runtime(stack).invoke_endpoint(EndpointName="dogs", ContentType="image/jpeg", Body=photo)
    assert json.loads(answer["Body"].read())["predictions"][0]["label"] == label


def test_the_originals_client_finds_the_class(stack: Stack, photos: list[tuple[bytes, str]]) -> None:
    # What it did: post JPEG bytes, take the argmax of the logits, look it up in the sorted names of the folders.
    names = sorted({label for _, label in photos})
    client = runtime(stack)
    for photo, label in photos:
        answer = client.invoke_endpoint(
            EndpointName="dogs", ContentType="image/jpeg", Body=photo, Accept="application/json;format=logits"
        )
        logits = json.loads(answer["Body"].read().decode("utf-8"))
        assert names[int(np.argmax(logits, 1)[0])] == label


def test_boto3_is_told_what_was_wrong(stack: Stack) -> None:
    client = runtime(stack)
    with pytest.raises(client.exceptions.ClientError) as caught:
        client.invoke_endpoint(EndpointName="dogs", ContentType="text/plain", Body=b"x")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 415


def test_a_fault_is_told_to_the_log_alone(stack: Stack) -> None:
    status, body = ask(stack, b"fail", "application/octet-stream")
    assert (status, json.loads(body)["error"]["problem"]) == (500, "the server failed")
    assert b"Traceback" not in body
    until = time.monotonic() + 10
    while "RuntimeError: an engine's own words" not in stack.log.read_text():
        assert time.monotonic() < until, stack.log.read_text()
        time.sleep(0.1)


def runtime(stack: Stack) -> Any:
    """boto3's client of endpoints; SageMaker's front takes /endpoints/NAME off the path, here the client does."""
    import boto3

    client = boto3.client(
        "sagemaker-runtime",
        endpoint_url=f"http://127.0.0.1:{stack.port}",
        region_name="us-west-1",
        aws_access_key_id="none",
        aws_secret_access_key="none",
    )

    def shorten(request: Any, **_: object) -> None:
        request.url = request.url.replace("/endpoints/dogs/", "/")

    client.meta.events.register("before-sign.sagemaker-runtime.InvokeEndpoint", shorten)
    return client


def test_every_input_is_answered_as_documented(stack: Stack, photos: list[tuple[bytes, str]]) -> None:
    # One test for all: each would wait for the stack's start in a process of its own.
    plain = photos[0][0]
    before = said_of(stack, plain)
    wrong = []
    for name in INPUTS:
        wrong += [problem] if (problem := problem_with(stack, name)) else []
        wrong += [f"after {name}: {after}"] if (after := said_of(stack, plain)) != before else []
    assert wrong == []


def test_a_thousand_mutations_are_answered_or_refused(stack: Stack, photos: list[tuple[bytes, str]]) -> None:
    plain = photos[0][0]
    before = said_of(stack, plain)
    for number, data in enumerate(mutations(1000)):
        status, answer = ask(stack, data, ANY)
        assert status in (200, 400, 413), (status, answer, data.hex())
        assert {"predictions", "error"} & set(json.loads(answer))
        if number % 10 == 9:
            assert said_of(stack, plain) == before, data.hex()


def said_of(stack: Stack, photo: bytes) -> Any:
    """The predictions for a photo, or all of an answer that has none."""
    said = json.loads(ask(stack, photo, "image/jpeg")[1])
    return said.get("predictions", said)


def problem_with(stack: Stack, name: str) -> str | None:
    """What is not as docs/serving.md says of an input."""
    content_type, body = INPUTS[name]
    expected, words = documented()[name]
    status, answer = ask(stack, body, content_type)
    if status != expected or b"Traceback" in answer:
        return f"{name}: {status} {answer[:300]!r}, not {expected}"
    said = json.loads(answer)
    if status == 200:
        ours = said.get("answers", [said])
        return None if all(one["predictions"] for one in ours) else f"{name}: {answer[:300]!r}"
    return None if words in said["error"]["problem"] else f"{name}: {said}, not {words}"
