"""What answers for an endpoint, as a process on the unpacked model: its own code, AWS's PyTorch stack or our server."""

from __future__ import annotations

import http.client
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from benchmarks.torchserve import ENVIRONMENT, free_ports, running_stack
from tests.aws.process import Job

LONGEST_START_S = 240.0
ROOT = Path(__file__).resolve().parents[2]

# Of a folder that stands for /opt/ml, with the model in it; a process's environment; where its lines go; what is set
# when nobody wants it any more: a context that yields the port where it answers, or raises TimeoutError.
Container = Callable[[Path, Mapping[str, str], Callable[[str], None], threading.Event], AbstractContextManager[int]]


def container_of(image: str) -> Container:
    """What stands for an image: our server, but for AWS's PyTorch images.

    Those are the code in the archive: in AWS's own stack where that is installed, else alone.
    """
    if "pytorch-inference" not in image:
        return own_server
    return pytorch_stack if ENVIRONMENT in os.environ else archive_code


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
    (port,) = free_ports(1)
    # The code of this checkout, as the image has its own; what the model's environment says wins.
    own = {
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "GRAFT_MODEL": str(base / "model"),
        "GRAFT_SERVE_HOST": "127.0.0.1",
        **environment,
        "SAGEMAKER_BIND_TO_PORT": str(port),
    }
    with _answering(["sh", str(ROOT / "serve" / "entrypoint.sh"), "serve"], port, base, own, tell, deleted):
        yield port


@contextmanager
def archive_code(
    base: Path, environment: Mapping[str, str], tell: Callable[[str], None], deleted: threading.Event
) -> Iterator[int]:
    """The code that came with the model, in the place of AWS's stack. See `Container`."""
    (port,) = free_ports(1)
    command = [sys.executable, str(Path(__file__).with_name("handler_server.py")), str(base / "model"), str(port)]
    with _answering(command, port, base, environment, tell, deleted):
        yield port


@contextmanager
def _answering(
    command: Sequence[str],
    port: int,
    base: Path,
    environment: Mapping[str, str],
    tell: Callable[[str], None],
    deleted: threading.Event,
) -> Iterator[None]:
    """A process that answers at a port, with the Python of this checkout; TimeoutError where it ends or does not."""
    marked = {
        "SAGEMAKER_BASE_DIR": str(base),
        **environment,
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
    }
    process = Job(command, base, marked, "SAGEMAKER_BASE_DIR", tell)
    try:
        end = time.monotonic() + LONGEST_START_S
        while not _is_healthy(port):
            if time.monotonic() > end or process.exit_code is not None or deleted.wait(0.1):
                raise TimeoutError
        yield
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
