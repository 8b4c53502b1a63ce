"""AWS's PyTorch serving stack as a process of this machine: TorchServe with the toolkits that its containers run.

Its Python is another environment, `make test-torchserve` makes it. The stack finds its Java server by its class among
all processes of the machine, so that one at a time is what there can be.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

ENVIRONMENT = "GRAFT_TORCHSERVE"  # names the folder of the environment
START_SECONDS = 120
# `torchserve --start` leaves its Java server to the next subreaper (prctl 36), which the container's own first
# process is; one that ended would stay in the list of processes, and be waited for, unless it is reaped.
START = """
import ctypes, os, signal

def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

ctypes.CDLL(None).prctl(36, 1)
signal.signal(signal.SIGCHLD, reap)
from sagemaker_pytorch_serving_container import serving, torchserve
torchserve.TS_CONFIG_FILE = os.path.join(os.environ["TMPDIR"], "ts.properties")
serving.main()
"""


@dataclass(frozen=True)
class Stack:
    """A stack that answers: its port, the process that began it, what it wrote."""

    port: int
    process: psutil.Process
    log: Path


@contextlib.contextmanager
def running_stack(base: Path, environment: Path, settings: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """The stack serving BASE/model, which holds code/inference.py, until the context ends.

    Args:
        base: what a container has at /opt/ml; its TMPDIR too.
        environment: folder of the Python environment that it is installed in.
        settings: more environment variables, for instance SAGEMAKER_MODEL_SERVER_WORKERS.

    Raises:
        TimeoutError: its model is not loaded within START_SECONDS.
    """
    temporary = base / "tmp"
    temporary.mkdir(exist_ok=True)
    ports = free_ports(6)
    variables = _variables(base, temporary, environment, ports) | dict(settings or {})
    log = base / "log"
    with log.open("wb") as output:
        command = [str(environment / "bin" / "python"), "-c", START]
        process = subprocess.Popen(command, cwd=base, env=variables, stdout=output, stderr=output)
        try:
            _wait_until_loaded(ports[0], log)
            yield Stack(ports[0], psutil.Process(process.pid), log)
        finally:
            _end(process)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in sockets]


def _variables(base: Path, temporary: Path, environment: Path, ports: list[int]) -> dict[str, str]:
    inference, management, metrics, grpc_inference, grpc_management, worker = ports
    return {
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(base),
        "TMPDIR": str(temporary),
        "SAGEMAKER_BASE_DIR": str(base),
        "SAGEMAKER_PROGRAM": "inference.py",
        "TS_INFERENCE_ADDRESS": f"http://127.0.0.1:{inference}",
        "TS_MANAGEMENT_ADDRESS": f"http://127.0.0.1:{management}",
        "TS_METRICS_ADDRESS": f"http://127.0.0.1:{metrics}",
        "TS_GRPC_INFERENCE_PORT": str(grpc_inference),
        "TS_GRPC_MANAGEMENT_PORT": str(grpc_management),
        "TS_INITIAL_WORKER_PORT": str(worker),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def _wait_until_loaded(port: int, log: Path) -> None:
    """Wait for an answer to a request: /ping says Healthy before a model is loaded."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
            with contextlib.closing(connection):
                connection.request("POST", "/invocations", b"", {"Content-Type": "image/jpeg"})
                if connection.getresponse().status != 503:  # "no worker is available"
                    return
        time.sleep(0.3)
    raise TimeoutError(f"the stack loaded no model within {START_SECONDS} s: {log.read_text()[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the first process, which passes it on; what is left is killed."""
    everyone = [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    for child in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.kill()
    process.wait()
