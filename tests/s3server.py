"""A real S3 over HTTP for tests: moto's server on this machine, and a proxy before it that misbehaves on request.

`python -m tests.s3server` runs the server alone, in a process of its own, until its stdin closes.
"""

from __future__ import annotations

import http.client
import logging
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


@contextmanager
def running_server() -> Iterator[str]:
    """A moto server in a thread; yields its URL."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def use_server(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Point boto3, here and in processes started from here, at `url`, with credentials that moto takes."""
    forget_account(monkeypatch)
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": url}.items():
        monkeypatch.setenv(name, value)


def forget_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, from anywhere."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_MAX_ATTEMPTS", "AWS_ENDPOINT_URL_S3", *CREDENTIALS):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def client(url: str) -> Any:
    """A boto3 client that talks to `url` whatever the environment says."""
    import boto3

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=url, **keys)


def new_bucket(url: str, name: str) -> str:
    """An empty bucket of this name, emptied first where it is there; returns the name."""
    s3 = client(url)
    s3.create_bucket(Bucket=name)
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=name):
        for entry in page.get("Contents", []):
            s3.delete_object(Bucket=name, Key=entry["Key"])
    return name


Fault = Literal["drop", "cut", "shorten", "spoil"]


@dataclass
class Faults:
    """What a proxy does to the requests that pass.

    every: each so-maniest request suffers `kind`; 0: none. delay: seconds before each answer. busy_until: 503
    SlowDown until then (`time.monotonic`). kind, where the answer has no body "drop" in place of the others:
        drop: the connection is closed without an answer.
        cut: it is closed amid the body.
        shorten: a whole answer of half the body, its Content-Length to match.
        spoil: the first byte of the body is another.
    """

    every: int = 0
    kind: Fault = "drop"
    delay: float = 0.0
    busy_until: float = 0.0
    methods: tuple[str, ...] = ("GET", "PUT", "POST", "HEAD", "DELETE")


@dataclass
class FaultyProxy:
    """An HTTP proxy in front of an S3 server. `requests` counts (method, path), `url` is where it listens."""

    target: str
    faults: Faults = field(default_factory=Faults)
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _seen: int = 0

    def count(self, method: str, part: str = "") -> int:
        """Requests so far of a method whose path holds `part`."""
        return sum(number for (sent, path), number in self.requests.items() if sent == method and part in path)

    def reset(self, faults: Faults | None = None) -> None:
        """Forget the requests so far, and misbehave as `faults` says from here on."""
        with self._lock:
            self.requests.clear()
            self.faults, self._seen = faults or Faults(), 0

    def busy(self, seconds: float) -> None:
        """Answer 503 SlowDown for so long."""
        self.faults.busy_until = time.monotonic() + seconds

    def judge(self, method: str, path: str) -> Fault | None:
        """Count a request; the fault that is to befall it."""
        with self._lock:
            self.requests[method, unquote(path)] += 1
            if not self.faults.every or method not in self.faults.methods:
                return None
            self._seen += 1
            return self.faults.kind if self._seen % self.faults.every == 0 else None


@contextmanager
def faulty_proxy(target: str) -> Iterator[FaultyProxy]:
    """A proxy in front of `target`, at first without a fault."""
    proxy = FaultyProxy(target)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    server = _Server(("127.0.0.1", 0), handler)
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultyProxy
    disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement
    wbufsize = -1
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def handle_expect_100(self) -> bool:
        going_on = super().handle_expect_100()
        self.wfile.flush()  # or the client waits a second for it
        return going_on

    def pass_on(self) -> None:
        body = self._body()
        fault = self.proxy.judge(self.command, self.path)
        time.sleep(self.proxy.faults.delay)
        if time.monotonic() < self.proxy.faults.busy_until:
            self._answer(503, [("Content-Type", "application/xml")], _SLOW_DOWN)
        elif fault == "drop":
            self._hang_up()
        else:
            self._answer(*self._forward(body), fault)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            continue
        return body

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        there = urlsplit(self.proxy.target)
        connection = http.client.HTTPConnection(there.hostname or "", there.port, timeout=60)
        # The Host stays: it is part of what the client signed.
        drop = ("transfer-encoding", "content-length", "connection", "expect")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in drop}
        connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        answer = connection.getresponse()
        data = answer.read()
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in ("connection", "server")]
        connection.close()
        return answer.status, kept, data

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, fault: Fault | None = None) -> None:
        if fault and not data:
            return self._hang_up()
        sent = data[: len(data) // 2] if fault in ("cut", "shorten") else data
        sent = bytes([sent[0] ^ 255]) + sent[1:] if fault == "spoil" else sent
        self.send_response(status)
        for name, value in headers:
            # A HEAD's Content-Length is that of the object.
            if name.lower() not in ("content-length", "transfer-encoding", "date") or (
                self.command == "HEAD" and name.lower() == "content-length"
            ):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data if fault == "cut" else sent)))
        self.end_headers()
        self.wfile.write(sent)
        self.wfile.flush()
        if fault == "cut":
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)


def main() -> None:
    """Serve until stdin closes; the first line of stdout is the URL."""
    with running_server() as url:
        print(url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
