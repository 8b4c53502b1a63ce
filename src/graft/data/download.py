"""One large file over HTTP: continued where it stopped, also by the next process, and never mixed from two versions."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from graft.errors import ConfigError, DataError
from graft.storage import write_text

# Makes a bar of a title and a total; the bar's function takes the bytes done, fewer than 0 where they are done again.
ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

TRIES = 5  # in a row without a new byte
PAUSE_S = 0.5  # before the second try; doubled for each one after it, so that the last comes after 7.5 s
TIMEOUT_S = 30.0  # without a byte
CHUNK = 1 << 20
_MD5 = re.compile(r'"[0-9a-f]{32}"')


class _BrokenError(Exception):
    """The server did not answer, or stopped before the end: worth another try."""


class _ChangedError(_BrokenError):
    """What was begun is no longer at the URL: to be started again."""

    def __init__(self) -> None:
        super().__init__("the file changes on the server")


@dataclass(frozen=True)
class _Version:
    """What lies at a URL, kept beside what is there of it.

    Attributes:
        url: from where.
        tag: its ETag, or else its date; without either nothing tells a changed file from the same.
        md5: of its content in hex, if an S3 server says so; empty for an upload in parts, whose ETag is no MD5.
        total: bytes.
    """

    url: str
    tag: str
    md5: str
    total: int


@dataclass
class _Answer:
    """The file, or the rest of it from byte `start`."""

    version: _Version
    start: int
    body: http.client.HTTPResponse


def http_url(url: str, region: str | None) -> str:
    """The address of an object that anybody may read; an unsigned S3 request is an ordinary HTTP one.

    Args:
        url: s3://BUCKET/KEY, https:// or http://.
        region: of the bucket; None asks the global endpoint. `AWS_ENDPOINT_URL_S3` and `AWS_ENDPOINT_URL`
            replace AWS's servers, as everywhere.

    Raises:
        ConfigError: it is something else.
    """
    if _is_http(url):
        return url
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not url.startswith("s3://") or not bucket or not key:
        raise ConfigError(f"data.archive={url}: accepted is s3://BUCKET/KEY, https:// or http:// with a zip file")
    path = quote(key)
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if not (endpoint := os.environ.get(name)):
            continue
        if not _is_http(endpoint):
            raise ConfigError(f"{name}={endpoint}: accepted is http:// or https:// with a host")
        return f"{endpoint.rstrip('/')}/{bucket}/{path}"
    host = f"s3.{region}.amazonaws.com" if region else "s3.amazonaws.com"
    # AWS's certificate covers one label in front of the host.
    return f"https://{host}/{bucket}/{path}" if "." in bucket else f"https://{bucket}.{host}/{path}"


def _is_http(url: str) -> bool:
    """Whether it is an address that can be asked."""
    try:
        parts = urlsplit(url)
    except ValueError:  # a bracket of an IPv6 address that is not closed
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.netloc)
        and url.isascii()
        and url.isprintable()
        and " " not in url
    )


def download(
    url: str,
    part: Path,
    *,
    size: int | None,
    etag_is_md5: bool,
    hint: str,
    check_room: Callable[[int, int], None],
    progress: ProgressBar,
) -> None:
    """Bring a file here, or the rest of it. Another version at the URL than the one begun starts again.

    Args:
        url: https:// or http://.
        part: the file that grows; what it is a part of is noted in `part`.json beside it.
        size: bytes that the whole must have; None takes any.
        etag_is_md5: as S3 promises of a file that was uploaded in one part; other servers do not.
        hint: what to tell a person where the server cannot be reached.
        check_room: called before the first byte with the bytes of the whole and of what is here; may raise.
        progress: makes a bar over bytes.

    Raises:
        DataError: not reachable, denied, not there, or of another size or content than announced.
        OSError: the file cannot be written.
    """
    known = _read_record(part, url)
    if known is None or (size is not None and known.total != size):
        discard(part)
    with ExitStack() as stack:
        advance: Callable[[int], None] | None = None
        for answer in _answers(url, part, hint):
            _check_size(url, answer.version.total, size)
            if advance is None:
                check_room(answer.version.total, answer.start)
                advance = stack.enter_context(progress("downloading", answer.version.total))
                advance(_have(part))
            _append(answer, part, advance)
    if etag_is_md5:
        _check_content(part, url)


def discard(part: Path) -> None:
    """Remove a file that `download` brought or began."""
    part.unlink(missing_ok=True)
    _record(part).unlink(missing_ok=True)


def _record(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_record(part: Path, url: str) -> _Version | None:
    try:
        version = _Version(**json.loads(_record(part).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return version if version.url == url else None


def _have(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _answers(url: str, part: Path, hint: str) -> Iterator[_Answer]:
    """One answer after the other until the file is whole; whoever iterates writes each down."""
    failures, best = 0, _have(part)
    known = _read_record(part, url)
    while known is None or _have(part) != known.total:
        reason = "the connection breaks"
        try:
            answer = _ask(url, _have(part), known)
        except _ChangedError as error:
            reason, known = str(error), None
        except _BrokenError as error:
            reason = str(error)
        else:
            with contextlib.closing(answer.body):
                yield answer
            known = answer.version
        # Counted against the most there ever was: a server that always starts at 0 and breaks is not progress.
        failures = 0 if _have(part) > best else failures + 1
        best = max(best, _have(part))
        if failures >= TRIES:
            raise DataError(f"{url} cannot be downloaded: {reason}, {TRIES} times in a row; {hint}")
        # A whole file that is no larger than what there was of another is no failure.
        if failures and (known is None or _have(part) != known.total):
            time.sleep(PAUSE_S * 2 ** (failures - 1))


def _ask(url: str, have: int, known: _Version | None) -> _Answer:
    headers = {"User-Agent": "graft", "Accept-Encoding": "identity"}
    # Without a tag the rest of what may be another file is not asked for.
    if have and known and known.tag:
        headers["Range"] = f"bytes={have}-"
        if known.tag.startswith('"'):  # not a weak one, which never matches
            headers["If-Match"] = known.tag
    try:
        body = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(url, error.code, str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(_phrase(error)) from error
    answer = _read_head(url, body)
    same = known and (answer.version.tag, answer.version.total) == (known.tag, known.total)
    if answer.start and (answer.start != have or not same):
        body.close()
        raise _ChangedError
    return answer


def _refusal(url: str, code: int, reason: str) -> Exception:
    if code in (412, 416):
        return _ChangedError()
    if code in (408, 425, 429) or code >= 500:
        return _BrokenError(f"the server answered {code} {reason}".rstrip())
    if code in (401, 403):
        return DataError(f"{url} is denied to the public ({code} {reason}), or there is no such file")
    if code in (404, 410):
        return DataError(f"{url} is not there ({code} {reason})")
    return DataError(f"{url} cannot be downloaded: the server answered {code} {reason}".rstrip())


def _phrase(error: Exception) -> str:
    """What a network error says: `Connection refused`, without the numbers around it."""
    cause = getattr(error, "reason", error)
    return (cause.strerror if isinstance(cause, OSError) else None) or str(cause) or type(cause).__name__


def _read_head(url: str, body: http.client.HTTPResponse) -> _Answer:
    head = body.headers
    start, total = 0, head.get("Content-Length", "")
    if body.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", head.get("Content-Range", ""))
        start, total = (int(found[1]), found[2]) if found else (0, "")
    if not total.isdigit():
        body.close()
        raise DataError(f"{url} cannot be downloaded: the server does not tell its size")
    tag = head.get("ETag") or head.get("Last-Modified") or ""
    # Encrypted with a key of KMS, the ETag of an object looks like an MD5 and is none.
    plain = head.get("x-amz-server-side-encryption", "AES256") == "AES256"
    md5 = tag.strip('"') if plain and _MD5.fullmatch(tag) else ""
    return _Answer(_Version(url, tag, md5, int(total)), start, body)


def _append(answer: _Answer, part: Path, advance: Callable[[int], None]) -> None:
    """Write an answer down as far as it comes."""
    if not answer.start:
        advance(-_have(part))
        part.unlink(missing_ok=True)
        write_text(_record(part), json.dumps(asdict(answer.version)))
    left = answer.version.total - answer.start
    with part.open("ab") as file:
        for chunk in _chunks(answer.body):
            file.write(chunk[:left])
            advance(len(chunk[:left]))
            left -= len(chunk[:left])


def _chunks(body: http.client.HTTPResponse) -> Iterator[bytes]:
    """What comes before the connection ends or breaks: how much is missing, the file's size tells."""
    while True:
        try:
            chunk = body.read1(CHUNK)
        except (OSError, http.client.HTTPException):
            return
        if not chunk:
            return
        yield chunk


def _check_size(url: str, total: int, size: int | None) -> None:
    if size is not None and total != size:
        raise DataError(f"{url} has {total:,} bytes; accepted are {size:,} (data.archive_bytes)")


def _check_content(part: Path, url: str) -> None:
    version = _read_record(part, url)
    if not version or not version.md5:
        return
    with part.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != version.md5:
        discard(part)
        raise DataError(
            f"{url} was damaged on the way: its MD5 is {found} in place of {version.md5}; it was removed, "
            "and the same command downloads it again"
        )
