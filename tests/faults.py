"""Faults of AWS in every client that is made meanwhile: botocore's before-send hook answers in the network's place."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest

from graft.launcher import calls
from tests.s3server import use_server

Operation = tuple[str, str]  # a service as boto3 names its client, and an operation as the API does

# Whose calls suffer: the local AWS makes calls of its own in this process.
PERSON = "person"
_CALLED = {"cloudwatch-logs": "logs"}  # by botocore's events
_MESSAGE = "the service is not itself"


class Kind(Enum):
    """What goes wrong."""

    throttled = "throttled"
    broken = "broken"


def refusal(service: str, kind: Kind) -> tuple[int, str]:
    """Status and code, as the pages on common errors of these services have them."""
    if service == "s3":
        return (503, "SlowDown") if kind is Kind.throttled else (500, "InternalError")
    throttled = "Throttling" if service in ("iam", "sts") else "ThrottlingException"
    return (400, throttled) if kind is Kind.throttled else (500, "InternalFailure")


@dataclass(frozen=True)
class _Fault:
    """What befalls an operation: an answer of AWS's, or whatever a function does; from and to which call."""

    what: Kind | Callable[[], None]
    after: int
    times: float


class Faults:
    """What befalls the calls of a person.

    Attributes:
        asked: how often each operation was asked for since `clear`, attempts counted one by one.
    """

    def __init__(self) -> None:
        self.asked: Counter[Operation] = Counter()
        self._faults: dict[Operation, _Fault] = {}
        self._replies: dict[Operation, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget what was asked, and leave the calls alone."""
        with self._lock:
            self.asked.clear()
            self._faults.clear()
            self._replies.clear()

    def befall(
        self, operation: Operation, what: Kind | Callable[[], None], *, after: int = 0, times: float = math.inf
    ) -> None:
        """Let `after` calls of an operation through, and spoil the next ones; calls are counted from here on."""
        with self._lock:
            self.asked.clear()
            self._faults[operation] = _Fault(what, after, times)

    def reply(self, operation: Operation, content: dict[str, Any]) -> None:
        """Answer where the local AWS cannot: it does not know the service."""
        self._replies[operation] = content

    def send(self, request: Any, event_name: str, **_: Any) -> Any:
        """The hook: an answer, or None for the network's."""
        if f"Credential={PERSON}/" not in str(request.headers.get("Authorization")):
            return None
        named, name = event_name.split(".")[1:]
        operation = (_CALLED.get(named, named), name)
        with self._lock:
            self.asked[operation] += 1
            number = self.asked[operation]
        fault = self._faults.get(operation)
        if fault is None or not fault.after < number <= fault.after + fault.times:
            reply = self._replies.get(operation)
            return None if reply is None else _answer(request.url, 200, json.dumps(reply).encode())
        if isinstance(fault.what, Kind):
            return _refused(request, operation[0], fault.what)
        fault.what()
        return None


def _refused(request: Any, service: str, kind: Kind) -> Any:
    status, code = refusal(service, kind)
    error = f"<Error><Code>{code}</Code><Message>{_MESSAGE}</Message></Error>"
    if request.method == "HEAD":
        body = b""
    elif service == "s3":
        body = error.encode()
    elif service in ("iam", "sts"):
        body = f"<ErrorResponse>{error}</ErrorResponse>".encode()
    else:
        body = json.dumps({"__type": code, "message": _MESSAGE}).encode()
    return _answer(request.url, status, body)


def _answer(url: str, status: int, body: bytes) -> Any:
    from botocore.awsrequest import AWSResponse

    return AWSResponse(url, status, {}, SimpleNamespace(stream=lambda **_: [body]))


@contextmanager
def faulty_aws(url: str) -> Iterator[Faults]:
    """A person's account at `url`, whose calls can be spoiled; attempts follow each other without a pause."""
    import boto3  # noqa: F401
    from botocore import handlers

    faults = Faults()
    with pytest.MonkeyPatch.context() as patch:
        use_server(patch, url)
        patch.setenv("AWS_ACCESS_KEY_ID", PERSON)
        patch.setattr(handlers, "BUILTIN_HANDLERS", [*handlers.BUILTIN_HANDLERS, ("before-send", faults.send)])
        patch.setattr("boto3.DEFAULT_SESSION", None)  # the next one has the hook
        patch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda seconds: None))
        # A client's attempts of all calls together are limited; these calls are many commands'.
        patch.setattr("botocore.retries.quota.RetryQuota.acquire", lambda self, amount: True)
        calls.client.cache_clear()
        yield faults
        calls.client.cache_clear()
