"""SIGKILL at random moments of real processes: the same command finishes, and its figures are those of an unkilled run.

Ten moments of the look at the photos and ten of the training. Most of them hit one run again and again, which is the
harder case: what a killed process left is what the next one starts from.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pictures import draw_folder
from tests.training import lasting, read_json, start, tiny, wait_for

pytestmark = pytest.mark.slow

AGAIN, ALONE = 7, 3  # kills of one run, and of runs that are killed once
PHOTOS, BATCHES, EPOCHS = 3 * (100 + 25 + 25), 3 * 100 // 4, 30
STEPS = BATCHES * EPOCHS
LENGTHY = (
    "model.backbone=resnet18",
    "model.image_size=96",
    "features.engine=openvino",
    "features.precision=auto",
    "features.batch_size=4",
    "data.batch_size=4",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.patience=null",
    "trainer.checkpoint_minutes=0.0005",
)
# A shard every 5 s would leave nothing to go on from: the whole look at these photos takes as long. And each photo
# takes at least 10 ms, so that on a fast machine too the look is not over before the kill comes.
IMPATIENT = """
import runpy, sys, time
from graft.features import decode, writer
render = decode.render
def slowly(*photo):
    time.sleep(0.01)
    return render(*photo)
decode.render, writer.SHARD_SECONDS = slowly, 0.1
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("photos"), train=100, valid=25, test=25)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nobody killed; its cache is beside it."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    finish(tiny(photos, run_dir, *LENGTHY))
    return run_dir


def begin(overrides: list[str]) -> subprocess.Popen[str]:
    return start(overrides, program=("-c", IMPATIENT))


def finish(overrides: list[str]) -> None:
    process = begin(overrides)
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err


def kill(process: subprocess.Popen[str]) -> None:
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def assert_alike(run_dir: Path, whole: Path) -> None:
    metrics, expected = (read_json(folder / "metrics.json") for folder in (run_dir, whole))
    assert len(lasting(expected)) >= 28
    assert lasting(metrics) == pytest.approx(lasting(expected), abs=1e-6, rel=0)


def computed(cache: Path) -> int:
    """Photos whose features are in the cache by now."""
    sizes = []
    for shard in (cache / "features").rglob("*.npy"):
        try:
            sizes.append(len(np.load(shard, mmap_mode="r")))
        except FileNotFoundError:  # joined with others in this moment
            continue
    return sum(sizes)


def kill_while_looking(overrides: list[str], run_dir: Path, cache: Path, rng: random.Random, photos: float) -> None:
    """Kill a run at a random moment after so many photos are in the cache."""
    process = begin(overrides)
    wait_for(run_dir / "run.json", process)
    wait_until(lambda: any(cache.rglob("space.json")) and computed(cache) >= photos, process)
    time.sleep(rng.uniform(0, 0.1))
    kill(process)
    assert not (run_dir / "data.json").exists(), "it was killed after the look at the photos"


def wait_until(happens: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not happens():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


def steps_done(run_dir: Path) -> int:
    """Optimiser steps up to the last checkpoint."""
    last = run_dir / "checkpoints" / "last.ckpt"
    return int(torch.load(last, weights_only=True)["global_step"]) if last.exists() else 0


def kill_while_training(overrides: list[str], run_dir: Path, rng: random.Random, steps: float) -> None:
    """Kill a run at a random moment after so many steps."""
    lives = len(list((run_dir / "logs" / "csv").glob("version_*")))
    process = begin(overrides)
    wait_for(run_dir / "logs" / "csv" / f"version_{lives}", process)
    wait_until(lambda: steps_done(run_dir) >= steps, process)
    time.sleep(rng.uniform(0, 0.1))
    kill(process)
    assert not (run_dir / "checkpoints" / "finished").exists(), "it was killed after it had trained"


def test_one_run_killed_again_and_again_while_it_looks_at_the_photos(photos: Path, whole: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    overrides = tiny(photos, tmp_path / "run", *LENGTHY)
    # The first before anything is computed, the others spread over the first four fifths.
    for moment in [0.0, *sorted(rng.uniform(0, 0.8) for _ in range(AGAIN - 1))]:
        kill_while_looking(overrides, tmp_path / "run", tmp_path / "cache", rng, moment * PHOTOS)
    before = computed(tmp_path / "cache")
    assert before < PHOTOS
    finish(overrides)
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert (metrics["features/computed"], metrics["features/reused"]) == (PHOTOS - before, before)
    assert_alike(tmp_path / "run", whole)


@pytest.mark.parametrize("number", range(ALONE))
def test_a_run_killed_once_while_it_looks_at_the_photos(photos: Path, whole: Path, tmp_path: Path, number: int) -> None:
    rng = random.Random(100 + number)
    overrides = tiny(photos, tmp_path / "run", *LENGTHY)
    kill_while_looking(overrides, tmp_path / "run", tmp_path / "cache", rng, rng.uniform(0, 0.8) * PHOTOS)
    finish(overrides)
    assert_alike(tmp_path / "run", whole)


def training(photos: Path, run_dir: Path, whole: Path, *more: str) -> list[str]:
    """The same run on features that are there already."""
    return tiny(photos, run_dir, *LENGTHY, f"features.cache_dir={whole.parent / 'cache'}", *more)


def test_one_run_killed_again_and_again_while_it_trains(photos: Path, whole: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    overrides = training(photos, tmp_path / "run", whole)
    for moment in [0.0, *sorted(rng.uniform(0, 0.8) for _ in range(AGAIN - 1))]:
        kill_while_training(overrides, tmp_path / "run", rng, moment * STEPS)
    assert 0 < steps_done(tmp_path / "run") < STEPS
    finish(overrides)
    assert steps_done(tmp_path / "run") == STEPS
    assert_alike(tmp_path / "run", whole)


@pytest.mark.parametrize("number", range(ALONE))
def test_a_run_killed_once_while_it_trains(photos: Path, whole: Path, tmp_path: Path, number: int) -> None:
    rng = random.Random(200 + number)
    overrides = training(photos, tmp_path / "run", whole)
    kill_while_training(overrides, tmp_path / "run", rng, rng.uniform(0, 0.8) * STEPS)
    finish(overrides)
    assert_alike(tmp_path / "run", whole)


def test_a_run_on_images_killed_while_its_workers_decode(photos: Path, whole: Path, tmp_path: Path) -> None:
    more = ("features.enabled=false", "model.backbone=squeezenet1_1", "data.workers=2", "trainer.max_epochs=2")
    finish(training(photos, tmp_path / "whole", whole, *more))
    rng = random.Random(3)
    overrides = training(photos, tmp_path / "run", whole, *more)
    for moment in (0.3, 0.6):
        kill_while_training(overrides, tmp_path / "run", rng, moment * 2 * BATCHES)
    finish(overrides)
    assert_alike(tmp_path / "run", tmp_path / "whole")
