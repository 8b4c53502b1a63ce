"""`python -m serve predict PHOTO... endpoint=NAME`: what an endpoint says, printed as what a model here says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from graft.errors import CloudError, ConfigError
from graft.launcher.calls import code_of, message_of
from serve.answers import JSON
from serve.endpoint_arguments import read_endpoint_arguments
from serve.endpoint_parity import invoke
from serve.predicting import AHEAD, Said, find_photos, tell
from serve.remote import read_answer, read_refusal

AT_ONCE = 4  # of one client: an endpoint of the smallest machine answers two at a time


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
    answers = ask_all(photos, arguments.endpoint, arguments.region)
    tell(answers, len(photos), other.config.top_k, other, folders=folders)


def ask_all(photos: Sequence[Path], endpoint: str, region: str) -> Iterator[tuple[Path, Said]]:
    """Each photo with its answer, in order."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ask") as pool:
        for start in range(0, len(photos), AHEAD):
            part = photos[start : start + AHEAD]
            yield from zip(part, pool.map(lambda photo: ask(photo, endpoint, region), part), strict=True)


def ask(photo: Path, endpoint: str, region: str) -> Said:
    """What an endpoint says of a photo.

    Raises:
        CloudError: it says nothing of it.
    """
    try:
        body = invoke(endpoint, region, photo.read_bytes(), JSON)
    except CloudError as error:
        if refusal := _refusal(error):
            return refusal
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


def _refusal(error: CloudError) -> Said | None:
    """What the model refused, as it said it; None where the fault is another's."""
    answer = getattr(error.__cause__, "response", {})
    status = int(answer.get("OriginalStatusCode", 0))
    return read_refusal(status, str(answer.get("OriginalMessage", ""))) if 400 <= status < 500 else None
