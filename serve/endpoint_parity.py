"""An endpoint asked for the parity samples of the model that it was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from graft.artifacts import read_parity
from graft.errors import CloudError, RunError
from graft.launcher.calls import client, explained
from serve.answers import LOGITS
from serve.model import check_parity

# The body is told by its first bytes (serve.reading); the type only has to be one of a photo.
PHOTO = "application/x-image"


def check_endpoint(name: str, region: str, bundle: Path, precision: str) -> float:
    """Send the parity samples, one by one; the worst relative difference (L2) of the logits.

    Args:
        name: of the endpoint.
        region: where it is.
        bundle: folder of the model.
        precision: that the endpoint computes in.

    Raises:
        RunError: they differ by more than the precision explains, or the model has none.
        CloudError: the endpoint does not answer, or with something else.
    """
    samples = read_parity(bundle)
    if not samples:
        raise RunError(f"{bundle}/parity holds no samples, so nothing tells whether the endpoint is good")
    found = np.stack([_logits(name, region, sample.data, len(sample.logits)) for sample in samples])
    return check_parity(Path(f"endpoint {name}"), precision, found, [sample.logits for sample in samples])


def _logits(name: str, region: str, photo: bytes, classes: int) -> Any:
    """float32 [C] for one photo."""
    body = invoke(name, region, photo, LOGITS)
    try:
        rows = np.asarray(json.loads(body), np.float32)
    except (ValueError, TypeError) as error:
        raise CloudError(f"endpoint {name} answers with {body[:80]!r}, which are no logits") from error
    if rows.shape != (1, classes):
        raise CloudError(f"endpoint {name} answers with logits of shape {rows.shape}; expected is {(1, classes)}")
    return rows[0]


def invoke(name: str, region: str, body: bytes, accept: str) -> bytes:
    """What an endpoint answers.

    Raises:
        CloudError: it refuses, or cannot be reached.
    """
    with explained(f"asking endpoint {name}"):
        answer = client("sagemaker-runtime", region).invoke_endpoint(
            EndpointName=name, Body=body, ContentType=PHOTO, Accept=accept
        )
        content: bytes = answer["Body"].read()
        return content
