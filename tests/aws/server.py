"""moto's server with our SageMaker in front: one address for all services, as AWS_ENDPOINT_URL wants it."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.aws.account import client
from tests.aws.hosting import Hosting
from tests.aws.rejections import Rejection
from tests.aws.sagemaker import SageMaker, check_request

TARGET = "SageMaker."
Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]
Answer = tuple[int, bytes | dict[str, Any], Mapping[str, str]]
INVOCATION = re.compile("/endpoints/([^/]+)/invocations")
ROLE = "graft-jobs"
BUCKET = "graft-local"


@dataclass
class LocalAws:
    """A running one."""

    url: str
    sagemaker: SageMaker

    def client(self, service: str) -> Any:
        """A boto3 client of it."""
        return client(service, self.url)


class Front:
    """WSGI application: SageMaker's operations that are ours, and moto for everything else."""

    def __init__(self, sagemaker: SageMaker, moto: Callable[..., Iterable[bytes]]) -> None:
        self._operations = sagemaker.operations()
        self._invoke = sagemaker.hosting.invoke
        self._moto = moto

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        name = environ.get("HTTP_X_AMZ_TARGET", "").removeprefix(TARGET)
        if name in self._operations:
            return answer(start_response, *self._obey(name, _body(environ)))
        if endpoint := INVOCATION.fullmatch(environ.get("PATH_INFO", "")):
            return answer(start_response, *self._ask(endpoint[1], environ))
        return self._moto(environ, start_response)

    def _obey(self, name: str, body: bytes) -> Answer:
        request = json.loads(body)
        try:
            check_request(name, request)
            return 200, self._operations[name](request), {}
        except Rejection as rejection:
            return _refused(rejection)

    def _ask(self, endpoint: str, environ: Environ) -> Answer:
        given = {"Content-Type": environ.get("CONTENT_TYPE", ""), "Accept": environ.get("HTTP_ACCEPT", "")}
        try:
            return self._invoke(endpoint, _body(environ), {name: text for name, text in given.items() if text})
        except Rejection as rejection:
            return _refused(rejection)


def _body(environ: Environ) -> bytes:
    body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    return body


def _refused(rejection: Rejection) -> Answer:
    content = {"__type": rejection.code, "message": rejection.message, "Message": rejection.message}
    return rejection.status, content, {"x-amzn-ErrorType": rejection.code}


def answer(
    start_response: StartResponse, status: int, content: bytes | dict[str, Any], headers: Mapping[str, str] = {}
) -> Iterable[bytes]:
    """An answer, in AWS's JSON 1.1 where it is no model's own."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    named = {"Content-Type": "application/x-amz-json-1.1", **headers, "Content-Length": str(len(body))}
    start_response(f"{status} {'OK' if status == 200 else 'Error'}", list(named.items()))
    return [body]


@contextmanager
def running_aws(folder: Path, program: Path, port: int = 0) -> Iterator[LocalAws]:
    """A local AWS with a role and a bucket in it; whatever it started ends with it.

    Args:
        folder: where jobs and endpoints have their files.
        program: the `train` of an environment with SageMaker's toolkit.
        port: to listen on; 0 for a free one.
    """
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    sagemaker = SageMaker(folder, program, Hosting(folder))
    front = Front(sagemaker, DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", port, front, threaded=True, request_handler=MotoRequestHandler)
    sagemaker.listen_at(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        aws = LocalAws(sagemaker.url, sagemaker)
        furnish(aws)
        yield aws
    finally:
        sagemaker.close()
        server.shutdown()
        server.server_close()
        thread.join()


def furnish(aws: LocalAws) -> None:
    """What an account is set up with: a role that jobs act under, and a bucket."""
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
        ],
    }
    iam = aws.client("iam")
    with suppress(iam.exceptions.EntityAlreadyExistsException):  # moto's state is that of this whole process
        iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=json.dumps(trust))
    aws.client("s3").create_bucket(Bucket=BUCKET)
