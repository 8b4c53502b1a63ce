"""What answers for an endpoint: our own server, whatever the image, as a process on the unpacked model."""

from __future__ import annotations

import http.client
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.aws.process import Job

LONGEST_START_S = 240.0
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def own_server(
    base: Path, environment: Mapping[str, str], tell: Callable[[str], None], deleted: threading.Event
) -> Iterator[int]:
    """`python -m serve local`, as our own container runs it, until the context ends; yields its port.

    Args:
        base: stands for /opt/ml, with the model in it.
        environment: of the process.
        tell: is given its lines.
        deleted: is set when nobody wants it any more.

    Raises:
        TimeoutError: it does not answer.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    command = [sys.executable, "-m", "serve", "local", f"bundle={base / 'model'}", f"serve.port={port}"]
    # The code of this checkout, as the image has its own; what the model's environment says of it wins.
    own = {"SAGEMAKER_BASE_DIR": str(base), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", **environment}
    process = Job(command, base, own, "SAGEMAKER_BASE_DIR", tell)
    try:
        end = time.monotonic() + LONGEST_START_S
        while not _is_healthy(port):
            if time.monotonic() > end or process.exit_code is not None or deleted.wait(0.1):
                raise TimeoutError
        yield port
    finally:
        process.end()


def _is_healthy(port: int) -> bool:
    with suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().status == 200
        finally:
            connection.close()
    return False
