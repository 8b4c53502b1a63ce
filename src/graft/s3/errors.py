"""What S3 and boto3 complain of, as one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from graft.errors import DataError

_NO_CREDENTIALS = (
    "no usable credentials ({}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile of ~/.aws in "
    "AWS_PROFILE (`aws configure` makes one)"
)
_RENEW = "the credentials have expired; renew them (`aws sso login`, or a new AWS_SESSION_TOKEN) and run again"
_DENIED = (
    "access denied; the account in use needs s3:ListBucket and s3:GetObject there, and to write s3:PutObject and "
    "s3:DeleteObject (`aws sts get-caller-identity` says which account it is)"
)
_REGION = "the bucket lies in another region ({}); set AWS_DEFAULT_REGION to the bucket's"
_BUSY = "S3 answered {} to every attempt; run again later: what arrived is kept"
_UNREACHED = "cannot be reached ({}); check the network, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL"

_BY_CODE = {
    "NoSuchBucket": "there is no such bucket; check the name, or make it with `aws s3 mb`",
    "NoSuchKey": "not there, or not any more; check the name and run again",
    "404": "not there, or not any more; check the name and run again",
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "403": _DENIED,
    "ExpiredToken": _RENEW,
    "ExpiredTokenException": _RENEW,
    "TokenRefreshRequired": _RENEW,
    "InvalidAccessKeyId": _NO_CREDENTIALS,
    "SignatureDoesNotMatch": _NO_CREDENTIALS,
    "InvalidToken": _NO_CREDENTIALS,
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "301": _REGION,
    "RequestTimeTooSkewed": "this machine's clock is more than 15 minutes off; set it",
    "PreconditionFailed": "changed while it was read (it is not what was listed any more); run again",
}


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Whatever boto3 raises about `url` becomes a DataError.

    Raises:
        DataError: in place of it, or boto3 is not installed.
    """
    try:
        import boto3  # noqa: F401
        from botocore.exceptions import BotoCoreError, ClientError
        from s3transfer.exceptions import (  # type: ignore[import-untyped]
            RetriesExceededError,
            S3DownloadFailedError,
            S3ValidationError,
        )
    except ImportError as error:
        raise DataError(f"{url} needs boto3, which is not installed; pip install 'graft[aws]'") from error
    try:
        yield
    except ClientError as error:
        raise DataError(f"{url}: {_by_code(error)}") from error
    except S3DownloadFailedError as error:
        raise DataError(f"{url} {_BY_CODE['PreconditionFailed']}") from error
    except (RetriesExceededError, S3ValidationError) as error:
        reason = getattr(error, "last_exception", None) or error
        raise DataError(
            f"{url}: every attempt to read it broke off ({reason}); check the network, run again"
        ) from error
    except BotoCoreError as error:
        raise DataError(f"{url}: {_by_kind(error)}") from error


def _by_code(error: Exception) -> str:
    answer = getattr(error, "response", {})
    code = str(answer.get("Error", {}).get("Code", ""))
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _BY_CODE:
        return _BY_CODE[code].format(code)
    if status >= 500 or code in ("SlowDown", "Throttling", "RequestTimeout", "TooManyRequests"):
        return _BUSY.format(code or status)
    return _BY_CODE.get(str(status), f"S3 refused ({_one_line(error)})").format(code)


def _by_kind(error: Exception) -> str:
    from botocore import exceptions as known

    credentials = (
        known.NoCredentialsError,
        known.PartialCredentialsError,
        known.CredentialRetrievalError,
        known.ProfileNotFound,
        known.TokenRetrievalError,
        known.SSOError,
    )
    if isinstance(error, credentials):
        return _NO_CREDENTIALS.format(_one_line(error))
    if isinstance(error, known.HTTPClientError | known.ConnectionError | known.EndpointProviderError):
        return _UNREACHED.format(_one_line(error))
    return _one_line(error)


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
