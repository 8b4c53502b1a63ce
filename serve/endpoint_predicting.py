"""`python -m serve predict PHOTO... endpoint=NAME`: what an endpoint says, printed as what a model here says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from graft.errors import CloudError, ConfigError
from graft.launcher.calls import code_of, message_of
from serve.answers import JSON
from serve.endpoint_arguments import read_endpoint_arguments
from serve.endpoint_parity import invoke
from serve.predicting import find_photos, tell
from serve.reading import Limits, check_size, read_file
from serve.refusals import Refusal
from serve.remote import BUSY, BusyError, Told, ask_all, read_answer, read_refusal

LIMITS = Limits()


def predict(argv: Sequence[str]) -> None:
    """Send photos to an endpoint. Ends with 1 where one could not be read.

    Raises:
        ConfigError: no photo is given.
        CloudError: the endpoint is not there, not in service, or answers with something else.
    """
    arguments = read_endpoint_arguments(argv, places=("output",), flags=("--json",), words=True)
    other = arguments.other
    if not other.words:
        raise ConfigError("no photo is given; accepted: PHOTO..., or a folder of photos")
    photos, folders = find_photos([Path(word) for word in other.words])
    answers = ask_all(photos, partial(ask, endpoint=arguments.endpoint, region=arguments.region))
    tell(answers, len(photos), other.config.top_k, other, folders=folders)


def ask(photo: Path, endpoint: str, region: str) -> Told:
    """What an endpoint says of a photo.

    Raises:
        BusyError: it has no time for it.
        CloudError: it says nothing of it.
    """
    try:
        data = read_file(photo)
        check_size(len(data), LIMITS)  # SageMaker's front refuses more, in words of its own
        body = invoke(endpoint, region, data, JSON)
    except Refusal as refusal:
        return refusal
    except CloudError as error:
        if refused := _refusal(error):
            return refused
        if _status(error) in BUSY:
            raise BusyError(str(error)) from error
        if code_of(error) == "ValidationError" and "not found" in message_of(error):
            raise CloudError(
                f"endpoint={endpoint}: there is none of this name in {region}; `python -m serve list` shows all"
            ) from error
        raise
    answer = read_answer(body)
    if answer is None:
        raise CloudError(
            f"endpoint={endpoint} answers with {body[:80]!r}; accepted is an endpoint of `python -m serve deploy`"
        )
    return answer


def _refusal(error: CloudError) -> Told | None:
    """What the model refused, as it said it; None where the fault is another's."""
    answer = getattr(error.__cause__, "response", {})
    status = _status(error)
    return read_refusal(status, str(answer.get("OriginalMessage", ""))) if 400 <= status < 500 else None


def _status(error: CloudError) -> int:
    """The status that the model's own server answered with; 0 where it was not asked."""
    return int(getattr(error.__cause__, "response", {}).get("OriginalStatusCode", 0))
