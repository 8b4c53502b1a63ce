"""serve/Dockerfile, its steps executed in a plain virtual environment: the container answers as SageMaker asks it."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
from pathlib import Path

import pytest

from serve.archive import unpack
from tests.dockerfile import execute, instructions
from tests.serving import wait_for
from tests.test_local import ROOT, ask, free_port, status_of

DOCKERFILE = ROOT / "serve" / "Dockerfile"


def test_the_image_is_pinned_small_and_not_roots() -> None:
    steps = list(instructions(DOCKERFILE))
    given = dict(steps)
    tag = given["FROM"].partition(":")[2]
    assert tag.split("-")[0].count(".") == 2
    assert "slim" in tag
    assert (given["USER"], given["CMD"]) == ("graft", '["serve"]')
    assert given["ENTRYPOINT"].startswith("[")  # the exec form: a shell would keep SIGTERM to itself
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    wanted = [
        line for line in (ROOT / "serve" / "requirements.txt").read_text().split("\n") if line[:1] not in ("#", "")
    ]
    assert set(wanted) <= pinned
    assert not set(wanted) & {"torch", "hydra-core", "boto3"}
    assert any("-c /app/constraints.txt" in arguments for name, arguments in steps if name == "RUN")


@pytest.mark.slow
def test_a_container_serves_the_mounted_model(packed_run: Path, tmp_path: Path) -> None:
    image = execute(DOCKERFILE, ROOT, tmp_path / "image")
    unpack(packed_run / "model.tar.gz", tmp_path / "model")
    rows = csv.DictReader((packed_run / "predictions.csv").read_text().splitlines())
    row = next(row for row in rows if row["split"] == "test")
    port = free_port()
    environment = image.environment | {"GRAFT_MODEL": str(tmp_path / "model"), "SAGEMAKER_BIND_TO_PORT": str(port)}
    command = [*image.entrypoint, *image.command]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: status_of(port) == 200, seconds=60)
            status, body = ask(port, "/invocations", Path(row["path"]).read_bytes())
            process.terminate()
            assert process.wait(20) in (0, -signal.SIGTERM)
        finally:
            process.kill()
    assert (status, json.loads(body)["predictions"][0]["label"]) == (200, row["class_1"])
