"""Calls of AWS: one client for each service, patient with throttling, and every complaint as one sentence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any, TypeVar

from graft.errors import CloudError
from graft.terminal import say

Found = TypeVar("Found")
Pause = Callable[[float], None]  # waits so many seconds

# "adaptive" would also slow down calls that come later; "standard" pauses up to 20 s between attempts.
_ATTEMPTS = 6
_CONNECT_S, _READ_S = 10, 60
LONGEST_PAUSE_S = 10.0
GIVE_UP_S = 600.0  # AWS not answering for so long is no passing fault
# A request whose connection broke may arrive after that; AWS's own answers take seconds.
LATE_S = 30.0
_MAKING = Lock()  # boto3's default session, which makes clients, is not thread-safe; clients are

_BUSY = {"ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "SlowDown"}
_DENIED = "denied; `python -m graft.launcher policy` prints what this account has to allow"
_WHOSE = "the credentials are not accepted; `aws sts get-caller-identity` tells whose they are"
_BY_CODE = {
    "AccessDeniedException": _DENIED,
    "AccessDenied": _DENIED,
    "ExpiredTokenException": "the credentials have expired; renew them (`aws sso login`) and run again",
    "UnrecognizedClientException": _WHOSE,
    "InvalidClientTokenId": _WHOSE,
    "ResourceLimitExceeded": (
        "the account's quota is used up ({message}); ask for more (`aws service-quotas list-service-quotas "
        "--service-code sagemaker`), or choose another launcher.instance_type"
    ),
    "ResourceInUse": "there is one of this name already ({message})",
}


@cache
def client(service: str, region: str) -> Any:
    """The client of a service in a region.

    Raises:
        CloudError: boto3 is not installed, or the configuration of AWS is not usable.
    """
    with explained(f"the client of {service}"):
        import logging

        import boto3
        from botocore.config import Config

        # It tells where it found credentials, at every client.
        logging.getLogger("botocore").setLevel(logging.WARNING)
        config = Config(
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            connect_timeout=_CONNECT_S,
            read_timeout=_READ_S,
        )
        with _MAKING:
            return boto3.client(service, region_name=region, config=config)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Whatever boto3 raises becomes one sentence about `what` was tried.

    Raises:
        CloudError: in place of it; `is_passing` tells whether another attempt may succeed.
    """
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise CloudError(f"{what} needs boto3, which is not installed; pip install 'graft[aws]'") from error
    try:
        yield
    except ClientError as error:
        raise CloudError(f"{what}: {_said(error)}") from error
    except BotoCoreError as error:
        raise CloudError(f"{what}: {_unreached(error)}") from error


def patiently(step: Callable[[], Found | None], pause: Pause = time.sleep) -> Found:
    """Repeat a step until it gives something; that AWS does not answer meanwhile is told once, and sat out.

    Raises:
        CloudError: of the step; AWS denies, or has not answered for `GIVE_UP_S` seconds.
    """
    started = heard = time.monotonic()
    told = False
    while True:
        now = time.monotonic()
        try:
            found = step()
            heard, told = now, False
        except CloudError as error:
            if not is_passing(error) or now - heard > GIVE_UP_S:
                raise
            if not told:
                say(f"{error}; still waiting")
            found, told = None, True
        if found is not None:
            return found
        pause(pause_after(now - started))


def once_it_arrived(look: Callable[[], Found | None], ago: float = 0.0, pause: Pause = time.sleep) -> Found | None:
    """What a look finds of a request whose answer got lost: repeated during `LATE_S` seconds while it finds nothing.

    Args:
        look: gives None where nothing is there.
        ago: seconds since the request was sent.
        pause: waits so many seconds.

    Raises:
        CloudError: of the look.
    """
    waited = ago
    while (found := look()) is None and waited < LATE_S:
        pause(1.0)
        waited += 1.0
    return found


def pause_after(seconds: float) -> float:
    """Seconds until the next look at something that has taken so many already."""
    return min(LONGEST_PAUSE_S, 0.5 + seconds / 30)


def is_passing(error: CloudError) -> bool:
    """Whether the cause of an error goes by itself: throttling, a fault of the service, a lost connection."""
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

    cause = error.__cause__
    if isinstance(cause, ClientError):
        return code_of(error) in _BUSY or _status(cause) >= 500
    return isinstance(cause, HTTPClientError | ConnectionError)


def code_of(error: CloudError) -> str:
    """The code of the service's answer, such as ValidationException; empty where it did not answer."""
    return str(getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", ""))


def message_of(error: CloudError) -> str:
    """The words of the service's answer; empty where it did not answer."""
    return str(getattr(error.__cause__, "response", {}).get("Error", {}).get("Message", ""))


def is_absent(error: CloudError) -> bool:
    """Whether the service says that there is no such thing: it does so in several ways."""
    return code_of(error) in ("ResourceNotFound", "ResourceNotFoundException") or (
        code_of(error) == "ValidationException"
        and any(words in message_of(error).lower() for words in ("not found", "could not find"))
    )


def _said(error: Any) -> str:
    answer = error.response.get("Error", {})
    code, message = str(answer.get("Code", "")), str(answer.get("Message", "")).rstrip(".")
    if code in _BUSY or _status(error) >= 500:
        return f"AWS answered {code or _status(error)} to each of {_ATTEMPTS} attempts; try again in some minutes"
    return _BY_CODE.get(code, "refused ({code}: {message})").format(code=code, message=message)


def _unreached(error: Exception) -> str:
    from botocore import exceptions as known

    text = str(error).splitlines()[0].rstrip(".")
    if isinstance(error, known.NoCredentialsError | known.PartialCredentialsError | known.ProfileNotFound):
        return f"no usable credentials ({text}); `aws configure` makes some, AWS_PROFILE names others"
    if isinstance(error, known.HTTPClientError | known.ConnectionError | known.EndpointProviderError):
        return f"AWS cannot be reached ({text}); check the network, launcher.region and AWS_ENDPOINT_URL"
    return text


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
