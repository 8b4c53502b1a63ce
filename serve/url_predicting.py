"""`python -m serve predict PHOTO... url=URL`: what a server says, printed as what a model here says."""

from __future__ import annotations

from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import Request, urlopen

from graft.errors import CloudError, ConfigError
from serve.answers import JSON
from serve.arguments import read_arguments
from serve.predicting import find_photos, tell
from serve.reading import read_file
from serve.refusals import Refusal
from serve.remote import BUSY, BusyError, Told, ask_all, read_answer, read_refusal

KEY = "url="
INVOCATIONS = "/invocations"
SECONDS = 60.0  # SageMaker's own limit of a request
ACCEPTED = "http://HOST:PORT, https://HOST/PATH"
HEADERS = {"Content-Type": "application/octet-stream", "Accept": JSON}


def predict(argv: Sequence[str]) -> None:
    """Send photos to a server of `python -m serve local`, or of its image. Ends with 1 where one could not be read.

    Raises:
        ConfigError: no photo is given, or the URL is none.
        CloudError: the server is not there, or answers with something else.
    """
    given = [argument.removeprefix(KEY) for argument in argv if argument.startswith(KEY)]
    rest = [argument for argument in argv if not argument.startswith(KEY)]
    arguments = read_arguments(rest, places=("output",), flags=("--json",), words=True)
    if not arguments.words:
        raise ConfigError("no photo is given; accepted: PHOTO..., or a folder of photos")
    count = arguments.config.top_k
    url = invocations_of(given[-1], count)
    photos, folders = find_photos([Path(word) for word in arguments.words])
    tell(ask_all(photos, lambda photo: ask(photo, url)), len(photos), count, arguments, folders=folders)


def invocations_of(url: str, count: int) -> str:
    """Where a server answers photos, given its address with or without a path, with `count` classes for each.

    Raises:
        ConfigError: it is no address.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"url={url} is no address of a server: {error}; accepted: {ACCEPTED}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"url={url} is no address of a server; accepted: {ACCEPTED}")
    path = INVOCATIONS if parts.path in ("", "/") else parts.path
    return urlunsplit(parts._replace(path=path, query=parts.query or f"top_k={count}"))


def ask(photo: Path, url: str) -> Told:
    """What a server says of a photo.

    Raises:
        BusyError: it has no time for it.
        CloudError: it says nothing of it.
    """
    try:
        request = Request(url, read_file(photo), HEADERS)
    except Refusal as unreadable:
        return unreadable
    try:
        with urlopen(request, timeout=SECONDS) as response:
            body = response.read()
    except HTTPError as error:
        body = error.read()
        refusal = read_refusal(error.code, body.decode(errors="replace"))
        if refusal and 400 <= error.code < 500:
            return refusal
        said = f"{refusal.problem}; {refusal.accepted}" if refusal else repr(body[:80])
        kind = BusyError if error.code in BUSY else CloudError
        raise kind(f"{url} answers with {error.code}: {said}") from error
    except (OSError, HTTPException) as error:
        raise CloudError(
            f"{url} cannot be reached ({error}); `python -m serve local` starts a server, and url= takes its address"
        ) from error
    answer = read_answer(body)
    if answer is None:
        raise CloudError(f"{url} answers with {body[:80]!r}; accepted is a server of `python -m serve local`")
    return answer
