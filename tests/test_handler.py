"""The handler as SageMaker's toolkits call it: the four functions, and the adapter that leaks no traceback."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from graft.errors import ConfigError, RunError
from serve.archive import unpack
from serve.handler import input_fn, model_fn, output_fn, predict_fn, transform_fn
from serve.model import ServedModel
from serve.refusals import Refusal


class Context:
    """Of the toolkit: what a handler sets the status of an answer by."""

    status = 200

    def set_response_status(self, code: int, phrase: str = "") -> None:
        self.status = code


@pytest.fixture(scope="module")
def model(packed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    folder = tmp_path_factory.mktemp("model")
    unpack(packed_run / "model.tar.gz", folder)
    return model_fn(str(folder))


def photos_of(packed_run: Path) -> list[tuple[Path, str]]:
    """Photos of test, and what the run itself said of them."""
    rows = csv.DictReader((packed_run / "predictions.csv").read_text().splitlines())
    return [(Path(row["path"]), row["class_1"]) for row in rows if row["split"] == "test"]


def test_the_handler_says_of_every_photo_what_the_run_said(model: ServedModel, packed_run: Path) -> None:
    photos = photos_of(packed_run)
    assert len(photos) == 12
    for path, label in photos:
        body, kind = output_fn(predict_fn(input_fn(path.read_bytes(), "image/jpeg"), model), "application/json")
        assert kind == "application/json"
        assert json.loads(body)["predictions"][0]["label"] == label


def test_a_list_of_photos_is_answered_one_by_one(model: ServedModel, packed_run: Path) -> None:
    photos = photos_of(packed_run)[:3]
    document = json.dumps([{"image": base64.b64encode(path.read_bytes()).decode()} for path, _ in photos])
    body, _ = transform_fn(model, document, "application/json", "*/*", Context())
    said = json.loads(body)
    assert [answer["predictions"][0]["label"] for answer in said["answers"]] == [label for _, label in photos]
    assert said["model"] == model.model_id
    assert said["milliseconds"] > 0
    one = json.dumps(json.loads(document)[:1])
    assert len(json.loads(transform_fn(model, one, "application/json", None, Context())[0])["answers"]) == 1


def test_the_original_client_finds_the_class_at_the_argmax_of_the_logits(model: ServedModel, packed_run: Path) -> None:
    for path, label in photos_of(packed_run)[:4]:
        body, _ = transform_fn(
            model, bytearray(path.read_bytes()), "image/jpeg", "application/json;format=logits", Context()
        )
        assert model.labels[int(np.argmax(json.loads(body), 1)[0])] == label


@pytest.mark.parametrize(
    ("body", "kind", "accept", "status"),
    [
        (b"", "image/jpeg", "*/*", 400),
        (b"no photo", "image/jpeg", "*/*", 400),
        (b"{", "application/json", "*/*", 400),
        (b'{"url": "https://example.org/a.jpg"}', "application/json", "*/*", 403),
        (b"\x80\x04.", "application/x-npy", "*/*", 415),
    ],
)
def test_a_refusal_is_a_status_and_words(model: ServedModel, body: bytes, kind: str, accept: str, status: int) -> None:
    context = Context()
    answer, answered_as = transform_fn(model, body, kind, accept, context)
    assert (context.status, answered_as) == (status, "application/json")
    error = json.loads(answer)["error"]
    assert error["status"] == status
    assert error["problem"]
    assert error["accepted"]
    assert b"Traceback" not in answer


@pytest.mark.parametrize("error", [RuntimeError("Exception from src/inference/infer_request.cpp:223"), MemoryError()])
def test_a_fault_is_told_to_the_log_and_not_to_the_client(
    model: ServedModel,
    packed_run: Path,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(model.engine, "run", mock.Mock(side_effect=error))
    context = Context()
    photo = photos_of(packed_run)[0][0].read_bytes()
    body, kind = transform_fn(model, photo, "image/jpeg", "*/*", context)
    assert (context.status, kind) == (500, "application/json")
    # To the letter, so that nothing of the fault is in it; our own server's test says the same.
    assert json.loads(body) == {
        "error": {"status": 500, "problem": "the server failed", "accepted": "try again, or tell who runs it"}
    }
    (record,) = caplog.records
    assert record.getMessage() == "the request failed"
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert "Traceback" in caplog.text


def test_an_answer_that_nobody_can_read_is_refused(model: ServedModel, packed_run: Path) -> None:
    context = Context()
    photo = photos_of(packed_run)[0][0].read_bytes()
    transform_fn(model, photo, "image/jpeg", "text/html", context)
    assert context.status == 406
    with pytest.raises(Refusal):
        output_fn([], "text/html")


def test_settings_come_from_the_environment(
    model: ServedModel, packed_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = photos_of(packed_run)[0][0].read_bytes()
    monkeypatch.setenv("GRAFT_SERVE_TOP_K", "2")
    assert len(json.loads(transform_fn(model, photo, "image/jpeg", None, Context())[0])["predictions"]) == 2
    for name in ("GRAFT_SERVE_TOP_K", "GRAFT_SERVE_THREADS"):
        monkeypatch.setenv(name, "two")
        with pytest.raises(ConfigError, match=f"{name}=two: accepted is an integer of at least 1"):
            model_fn(model.path)
        monkeypatch.delenv(name)


def test_a_model_that_does_not_answer_its_samples_is_not_served(model: ServedModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.path.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "parity").unlink()
    (folder / "parity").mkdir()
    for path in (model.path / "parity").glob("*.image"):
        (folder / "parity" / path.name).symlink_to(path)
    logits = json.loads((model.path / "parity" / "logits.json").read_text())
    logits[3] = [-value for value in logits[3]]
    (folder / "parity" / "logits.json").write_text(json.dumps(logits))
    with pytest.raises(RunError, match="the fp32 engine does not reproduce parity sample 03"):
        model_fn(folder)
