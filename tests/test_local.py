"""`python -m serve local` as a process: what it answers, and what it must not import to answer soon."""

from __future__ import annotations

import contextlib
import csv
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from graft.command import value_of as value_by_hydra
from graft.config import ServeConfig, knobs
from graft.errors import ConfigError
from serve.arguments import CONF, read_arguments, value_of
from serve.local import SAMPLES_AT_START
from tests.serving import wait_for

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = re.compile(r"^import time: +\d+ \| +\d+ \| *(\S+)$", re.MULTILINE)
# Each takes a tenth of a second or much more; the last, of OpenVINO, would report to its makers.
NOT_FOR_A_SERVER = {
    *("hydra", "omegaconf", "torch", "torchvision", "pytorch_lightning", "lightning", "boto3", "optuna", "nncf"),
    *("rich", "urllib3", "sklearn", "openvino_telemetry"),
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(bundle: Path, port: int, stderr: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that serves a bundle; what it says, and imports, goes to `stderr`."""
    command = [sys.executable, "-X", "importtime", "-m", "serve", "local", f"bundle={bundle}", f"serve.port={port}"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    with stderr.open("wb") as log, subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body)
        response = connection.getresponse()
        return response.status, response.read()


def status_of(port: int) -> int | None:
    """Of /ping; None while nobody listens."""
    try:
        return ask(port, "/ping")[0]
    except OSError:
        return None


def test_an_exported_model_is_served_without_what_trained_it(packed_run: Path, tmp_path: Path) -> None:
    rows = csv.DictReader((packed_run / "predictions.csv").read_text().splitlines())
    row = next(row for row in rows if row["split"] == "test")
    port, log = free_port(), tmp_path / "log"
    with serving(packed_run / "model.tar.gz", port, log) as process:
        wait_for(lambda: status_of(port) == 200, seconds=60)
        status, body = ask(port, "/invocations", Path(row["path"]).read_bytes())
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM
    assert (status, json.loads(body)["predictions"][0]["label"]) == (200, row["class_1"])
    imported = set(IMPORTED.findall(log.read_text()))
    assert {"openvino", "uvicorn", "serve.server"} <= imported
    assert imported & NOT_FOR_A_SERVER == set()


def has_failed(port: int) -> bool:
    """Whether it answers /ping with more than that it is being loaded, or well."""
    try:
        status, body = ask(port, "/ping")
    except OSError:
        return False
    return status == 503 and b"being loaded" not in body


def test_a_damaged_archive_is_never_healthy_and_says_why(packed_run: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "model.tar.gz"
    damaged.write_bytes((packed_run / "model.tar.gz").read_bytes()[:100_000])
    port = free_port()
    with serving(damaged, port, tmp_path / "log"):
        wait_for(lambda: has_failed(port), seconds=60)
        problem = json.loads(ask(port, "/ping")[1])["error"]["problem"]
    assert problem.startswith(f"the model cannot be served: {damaged} cannot be unpacked (")


def test_a_model_that_fails_at_a_later_parity_sample_is_served_no_more(packed_run: Path, tmp_path: Path) -> None:
    changed, bundle, port = tmp_path / "model.tar.gz", tmp_path / "model", free_port()
    with tarfile.open(packed_run / "model.tar.gz") as tar:
        tar.extractall(bundle, filter="data")
    path = bundle / "parity" / "logits.json"
    logits = json.loads(path.read_text())
    assert len(logits) > SAMPLES_AT_START
    logits[SAMPLES_AT_START] = [-2 * value for value in logits[SAMPLES_AT_START]]
    path.write_text(json.dumps(logits))
    # Packed: its folder is gone by the time the later samples are run.
    with tarfile.open(changed, "w:gz") as tar:
        tar.add(bundle, "")
    with serving(changed, port, tmp_path / "log"):
        wait_for(lambda: has_failed(port), seconds=60)
        problem = json.loads(ask(port, "/ping")[1])["error"]["problem"]
        assert ask(port, "/invocations", b"x")[0] == 503
    assert problem.startswith("the model cannot be served: ")
    assert f"the fp32 engine does not reproduce parity sample {SAMPLES_AT_START:02d}: " in problem
    assert '"event": "ready"' in (tmp_path / "log").read_text()


TEXTS = [
    *("1", "+1", "-1", "007", "0.5", "1.0", "1e3", ".5", "0x10", "1_000", "nan", "inf", "null", "true", "false"),
    *("True", "yes", "auto", "fp32", "int8", "latency", "torch", "0.0.0.0", "localhost", "::1"),
    *("[]", "[a.org]", "[a.org,b-c.d.org]", "[a.org, b.org]", "[a]", "[1.5]", "[nan.org]", "[,]", "a.org", "[a.org"),
    *("'8'", "[1]", "1,2", "", " 1", "${serve.port}", "a b", "1.2.3"),
]


@pytest.mark.parametrize("key", [key for key in knobs() if key.startswith("serve.")])
def test_a_value_is_read_as_hydra_reads_it(key: str) -> None:
    for text in TEXTS:
        assert outcome(value_of, key, text) == outcome(value_by_hydra, key, text), text


def outcome(read: object, key: str, text: str) -> tuple[type, object]:
    try:
        value = read(key, text)  # type: ignore[operator]
    except ConfigError as error:
        return ConfigError, str(error)
    return type(value), value


def test_the_defaults_are_those_of_the_file_and_the_command_line_wins() -> None:
    merged = OmegaConf.merge(OmegaConf.structured(ServeConfig), OmegaConf.load(CONF))
    assert read_arguments([], places=()).config == OmegaConf.to_object(merged)
    given = read_arguments(["serve.port=9", "serve.mode=throughput", "serve.threads=2"], places=()).config
    assert (given.port, given.mode.value, given.threads) == (9, "throughput", 2)
