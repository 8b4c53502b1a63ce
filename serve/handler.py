"""The four functions of SageMaker's serving toolkits, on an exported model: no torch, Lightning, Hydra or boto3.

`transform_fn` does what the four do one after the other, and turns a refusal or a fault into the status and the body
that a client is to get: the toolkit would answer 500 with a traceback. Settings come from the environment, for that is
what an endpoint can be given: GRAFT_SERVE_ENGINE, GRAFT_SERVE_PRECISION, GRAFT_SERVE_THREADS, GRAFT_SERVE_TOP_K.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graft.errors import ConfigError
from serve.answers import Answer, write_answer
from serve.model import ServedModel
from serve.reading import Limits, Photos, decode, read_entries
from serve.refusals import Failure, Refusal

Body = bytes | bytearray | str | None  # None: TorchServe has taken a form apart

LIMITS = Limits()
TOP_K = 5
_log = logging.getLogger("graft.serve")


def model_fn(model_dir: str | Path, context: Any = None) -> ServedModel:
    """The model of an unpacked archive or of a bundle, which has answered its parity samples as it must.

    Raises:
        RunError: there is no whole model, or it does not reproduce its parity samples.
        ConfigError: the environment asks for what the model does not offer.
    """
    _top_k()  # a wrong value is told now, not to the first client
    model = ServedModel.load(
        Path(model_dir),
        engine=os.environ.get("GRAFT_SERVE_ENGINE", "auto"),
        precision=os.environ.get("GRAFT_SERVE_PRECISION", "auto"),
        threads=_count("GRAFT_SERVE_THREADS"),
    )
    model.check_parity()
    return model


def input_fn(request_body: Body, content_type: str | None, context: Any = None) -> Photos:
    """The encoded photos of a request.

    Raises:
        Refusal: 4xx, see `serve.reading.read_entries`; addresses are not fetched.
    """
    return read_entries(_bytes(request_body), content_type, LIMITS).photos()


def predict_fn(photos: Sequence[bytes], model: ServedModel, context: Any = None) -> list[Answer]:
    """An answer for each photo.

    Raises:
        Refusal: 4xx, see `serve.reading.decode`.
    """
    images = [decode(photo, model.spec, LIMITS) for photo in photos]
    # One by one: photos of one request share no batch on a CPU, where that gains nothing and takes memory.
    return [answer for image in images for answer in model.predict(np.ascontiguousarray(image[None]))]


def output_fn(answers: Sequence[Answer], accept: str | None, context: Any = None) -> tuple[bytes, str]:
    """The body of the answer and its content type; the model's id and the time taken are `transform_fn`'s to tell.

    Raises:
        Refusal: 406.
    """
    return write_answer(answers, accept, _top_k(), None, None)


def transform_fn(
    model: ServedModel,
    request_body: Body,
    content_type: str | None,
    accept: str | None,
    context: Any,
) -> tuple[bytes, str]:
    """Answer a request of the toolkit; a refusal sets the status of its `context` and is the body.

    So does a fault, as 500: no word of what it was; the log has it.
    """
    started = time.perf_counter()
    try:
        photos = input_fn(request_body, content_type)
        answers = predict_fn(photos, model)
        taken = 1000 * (time.perf_counter() - started)
        return write_answer(answers, accept, _top_k(), taken, model.model_id, many=photos.listed)
    except Refusal as refusal:
        return _refused(refusal, context)
    except Exception:
        # Whatever it is: what leaves this function is sent to the client with its traceback by TorchServe.
        _log.exception("the request failed")
        return _refused(Failure(), context)


def _refused(refusal: Refusal, context: Any) -> tuple[bytes, str]:
    context.set_response_status(code=refusal.status, phrase="refused")
    return refusal.body(), "application/json"


def _bytes(body: Body) -> bytes:
    """The same object where it is bytes."""
    return body.encode() if isinstance(body, str) else bytes(body or b"")


def _top_k() -> int:
    return _count("GRAFT_SERVE_TOP_K") or TOP_K


def _count(name: str) -> int | None:
    """A number of the environment; None where it is not set."""
    value = os.environ.get(name)
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise ConfigError(f"{name}={value}: accepted is an integer of at least 1")
    return int(value)
