"""What answers for an endpoint: our own server or AWS's PyTorch stack, as a process on the unpacked model."""

from __future__ import annotations

import http.client
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from benchmarks.torchserve import ENVIRONMENT, running_stack
from tests.aws.process import Job

LONGEST_START_S = 240.0
ROOT = Path(__file__).resolve().parents[2]

# Of a folder that stands for /opt/ml, with the model in it; a process's environment; where its lines go; what is set
# when nobody wants it any more: a context that yields the port where it answers, or raises TimeoutError.
Container = Callable[[Path, Mapping[str, str], Callable[[str], None], threading.Event], AbstractContextManager[int]]


def container_of(image: str) -> Container:
    """What stands for an image: AWS's own stack for its PyTorch images, where that is installed; else our server."""
    return pytorch_stack if "pytorch-inference" in image and ENVIRONMENT in os.environ else own_server


@contextmanager
def pytorch_stack(
    base: Path, environment: Mapping[str, str], tell: Callable[[str], None], deleted: threading.Event
) -> Iterator[int]:
    """TorchServe with AWS's toolkits; one at a time is what a machine can run. See `Container`."""
    # Its PATH leads to the stack's own programs.
    settings = {name: value for name, value in environment.items() if name != "PATH"}
    with running_stack(base, Path(os.environ[ENVIRONMENT]), settings) as stack:
        try:
            yield stack.port
        finally:
            for line in stack.log.read_text(errors="replace").splitlines():
                tell(line)


@contextmanager
def own_server(
    base: Path, environment: Mapping[str, str], tell: Callable[[str], None], deleted: threading.Event
) -> Iterator[int]:
    """The entrypoint of our own container. See `Container`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    # The code and the Python of this checkout, as the image has its own; what the model's environment says wins.
    own = {
        "SAGEMAKER_BASE_DIR": str(base),
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "GRAFT_MODEL": str(base / "model"),
        "GRAFT_SERVE_HOST": "127.0.0.1",
        **environment,
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
    }
    process = Job(["sh", str(ROOT / "serve" / "entrypoint.sh"), "serve"], base, own, "SAGEMAKER_BASE_DIR", tell)
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
