"""Tiny runs for tests: a configuration that trains in a second, in this process or by `python train.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from graft.trainer import RunResult, train
from tests.composing import ROOT, composed

TINY = (
    "data=folder",
    "data.batch_size=8",
    "data.workers=0",
    "model.backbone=squeezenet1_1",
    "model.weights=none",
    "model.image_size=64",
    "model.hidden=32",
    "optim.lr=0.01",
    "features.engine=torch",  # OpenVINO needs a second to compile a network
    "features.precision=fp32",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=3",
    "trainer.progress=false",
)
# They tell how long something took, or how much of it an earlier process had done.
PASSING = ("time/", "features/computed", "features/reused", "features/images_per_s", "test/openings")


def tiny(photos: Path, run_dir: Path, *more: str) -> list[str]:
    """Overrides of a tiny run; those in `more` win. The cache lies beside the run directory."""
    places = (f"data.root={photos}", f"run_dir={run_dir}", f"features.cache_dir={run_dir.parent / 'cache'}")
    return [*TINY, *places, *more]


def run(overrides: list[str]) -> RunResult:
    """Train in this process."""
    return train(composed(*overrides), tuple(overrides))


def start(
    overrides: list[str], *options: str, program: tuple[str, ...] = (), script: str = "train.py"
) -> subprocess.Popen[str]:
    """`python PROGRAM SCRIPT OPTIONS OVERRIDES` as a process and a process group of its own, its output piped."""
    command = [sys.executable, *program, str(ROOT / script), *options, *overrides]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Until a file is there; fails where the process ends first."""
    end = time.monotonic() + seconds
    while not path.exists():
        if process.poll() is not None or time.monotonic() > end:
            _, err = process.communicate()
            raise AssertionError(f"{path} never came; exit code {process.returncode}: {err}")
        time.sleep(0.01)


def lasting(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that must be the same in every run of the same configuration."""
    return {name: value for name, value in metrics.items() if not name.startswith(PASSING)}


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text())
