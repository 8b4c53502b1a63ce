"""One boto3 client and transfer manager per process, made when first used."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from graft.errors import DataError
from graft.s3.errors import explained

READERS = 32

# botocore's "standard" mode gives a client 500 points for all retries together, and a lost connection costs 14: with
# 32 reads in flight an outage of seconds ends them all. "legacy" counts per request: eight attempts with random pauses
# of up to 1, 2, 4 ... 64 s, a minute on average. The connection's own time limits stay short.
_ATTEMPTS = 8
_CONNECT_S, _READ_S = 10, 60

_MIB = 2**20
PART_BYTES = 8 * _MIB  # what boto3 takes; smaller objects are read with one request


@dataclass(frozen=True)
class _Open:
    process: int
    client: Any
    transfers: Any


_lock = threading.Lock()


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held the old one when this process was forked


os.register_at_fork(after_in_child=_new_lock)


class Connection:
    """The way to one bucket. Can be pickled and survives a fork: each process opens its own client."""

    def __init__(self, url: str, bucket: str) -> None:
        self._url = url
        self._bucket = bucket
        self._open: _Open | None = None
        self._addressing: str | None = None  # known once somebody answered

    @property
    def client(self) -> Any:
        """The S3 client of this process. Raises DataError where there is no boto3, endpoint or credentials."""
        return self._opened().client

    @property
    def transfers(self) -> Any:
        """boto3's transfer manager on that client."""
        return self._opened().transfers

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def _opened(self) -> _Open:
        if self._open is None or self._open.process != os.getpid():
            with _lock:
                if self._open is None or self._open.process != os.getpid():
                    self._open = self._connect()
        return self._open

    def _connect(self) -> _Open:
        with explained(self._url):
            from boto3.s3.transfer import TransferConfig, create_transfer_manager

            try:
                session = _new_session()
                if self._addressing is None:
                    self._addressing = self._knock(session)
                attempts = int(os.environ.get("AWS_MAX_ATTEMPTS", _ATTEMPTS))
                client = session.client("s3", config=_config(attempts, self._addressing))
            except ValueError as error:
                raise DataError(f"{self._url}: {error}; check AWS_ENDPOINT_URL and AWS_MAX_ATTEMPTS") from error
            config = TransferConfig(
                max_concurrency=READERS,
                num_download_attempts=_ATTEMPTS,
                multipart_threshold=PART_BYTES,
                multipart_chunksize=PART_BYTES,
                preferred_transfer_client="classic",
            )
            return _Open(os.getpid(), client, create_transfer_manager(client, config))

    def _knock(self, session: Any) -> str:
        """How the server wants buckets to be addressed, from one request whose answer is no matter.

        It ends soon where there is nobody, or no credentials: eight attempts would take a minute to say so.
        """
        from botocore.exceptions import ClientError, ConnectTimeoutError, EndpointConnectionError, HTTPClientError

        client = session.client("s3", config=_config(2, "path"))
        try:
            client.head_bucket(Bucket=self._bucket)
        except (EndpointConnectionError, ConnectTimeoutError):
            raise
        except (ClientError, HTTPClientError):
            pass  # whether that lasts, the patient client finds out
        host = urlsplit(client.meta.endpoint_url).hostname or ""
        # Other servers seldom have a DNS name for each bucket.
        return "auto" if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else "path"


def _new_session() -> Any:
    import botocore.session
    from boto3.session import Session

    core = botocore.session.get_session()
    core.register_component("data_loader", _loader())
    # Nothing here reads dates, and parsing them is a good part of the cost of a listing.
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    return Session(botocore_session=core)


@cache
def _loader() -> Any:
    """Botocore's description of S3, which takes 0.15 s to parse: shared by all connections."""
    from botocore.loaders import create_loader

    return create_loader()


def _config(attempts: int, addressing: str) -> Any:
    from botocore.config import Config

    return Config(
        max_pool_connections=READERS + 8,
        connect_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        retries={"mode": "legacy", "total_max_attempts": attempts},
        s3={"addressing_style": addressing},
        # The transfer manager then asks for a version by its ETag with the first request, and needs no HEAD.
        response_checksum_validation="when_required",
    )
