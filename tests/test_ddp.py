"""Several processes: the figures of one, half of the photos decoded by each, and a kill that loses nothing."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from graft.data.loader import EpochOrder
from graft.errors import ConfigError
from graft.launcher import launch
from tests.composing import ROOT, composed
from tests.pictures import draw_folder
from tests.training import lasting, read_json, start, tiny, wait_for

# 29 photos in batches of 7: the last one has a photo for one process and none for the other.
IMAGES = ("features.enabled=false", "model.unfreeze=features.12", "data.batch_size=7", "model.hidden=16")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--local-addr=127.0.0.1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = draw_folder(tmp_path_factory.mktemp("photos"), train=10, valid=5, test=5)
    (root / "train" / "class_0" / "000.jpg").unlink()
    return root


def finish(overrides: list[str]) -> str:
    """Run train.py to its end; what it printed."""
    process = start(overrides)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


def torchrun(*arguments: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Processes that a person started, by torchrun."""
    return subprocess.Popen(
        [*TORCHRUN, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}", "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def children(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    found = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(child) for child in found.split()]


def assert_alike(run_dir: Path, other: Path, *, within: float = 1e-3) -> None:
    found, expected = (lasting(read_json(folder / "metrics.json")) for folder in (run_dir, other))
    assert len(expected) >= 28
    assert found == pytest.approx(expected, abs=within, rel=0)


@pytest.mark.slow
def test_two_processes_that_train_on_images_give_the_figures_of_one(photos: Path, tmp_path: Path) -> None:
    finish(tiny(photos, tmp_path / "one", *IMAGES))
    out = finish(tiny(photos, tmp_path / "two", *IMAGES, "trainer=ddp"))
    assert out.count("bundle:") == 1  # the second process has nothing to say
    assert_alike(tmp_path / "two", tmp_path / "one", within=1e-5)
    assert read_json(tmp_path / "two" / "environment.json")["processes"] == 2


@pytest.mark.slow
def test_each_process_decodes_half_of_the_photos(photos: Path, tmp_path: Path) -> None:
    finish(tiny(photos, tmp_path / "one"))
    together = tiny(photos, tmp_path / "two", "trainer=ddp", f"features.cache_dir={tmp_path / 'other'}")
    process = torchrun(
        "--nproc-per-node=2", f"--rdzv-endpoint=127.0.0.1:{free_port()}",
        str(ROOT / "tests" / "counting.py"), *together,
        environment={"COUNTS": str(tmp_path)},
    )  # fmt: skip
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    counts = [int((tmp_path / rank).read_text()) for rank in "01"]
    assert sum(counts) == 59
    assert abs(counts[0] - counts[1]) <= 1
    assert_alike(tmp_path / "two", tmp_path / "one", within=1e-5)


@pytest.mark.slow
def test_machines_with_a_cache_each_send_each_other_features(photos: Path, tmp_path: Path) -> None:
    finish(tiny(photos, tmp_path / "one"))
    port = free_port()
    machines = [
        torchrun(
            "--nnodes=2", "--nproc-per-node=1", f"--node-rank={number}", "--rdzv-id=test",
            f"--rdzv-endpoint=127.0.0.1:{port}", f"--rdzv-conf=is_host={number == 0}".lower(),
            str(ROOT / "train.py"),
            *tiny(photos, tmp_path / "two", "trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2"),
            f"features.cache_dir={tmp_path / str(number)}",
            environment={},
        )
        for number in range(2)
    ]  # fmt: skip
    for machine in machines:
        _, err = machine.communicate(timeout=200)
        assert machine.returncode == 0, err
    assert_alike(tmp_path / "two", tmp_path / "one", within=1e-5)
    for number in range(2):  # both are complete
        shards = list((tmp_path / str(number) / "features").rglob("*.npy"))
        assert len(np.unique(np.concatenate([np.load(shard)["key"] for shard in shards]))) == 59


@pytest.mark.slow
def test_killed_and_resumed_two_processes_give_the_same(photos: Path, tmp_path: Path) -> None:
    more = (
        *IMAGES,
        "trainer=ddp",
        "trainer.max_epochs=12",
        "trainer.checkpoint_minutes=0.0005",
        "trainer.patience=null",
    )
    finish(tiny(photos, tmp_path / "whole", *more))
    rng = random.Random(0)
    for life in range(2):
        process = start(tiny(photos, tmp_path / "run", *more))
        wait_for(tmp_path / "run" / "logs" / "csv" / f"version_{life}", process)
        time.sleep(rng.uniform(0, 0.5))
        for worker in children(process.pid):
            os.kill(worker, signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err.count("\n")) == (2, 1), err
        assert " of 2 ended with code -9: " in err
        assert not (tmp_path / "run" / "checkpoints" / "finished").exists(), "it was killed after it had trained"
    finish(tiny(photos, tmp_path / "run", *more))
    assert_alike(tmp_path / "run", tmp_path / "whole", within=1e-5)


@pytest.mark.slow
def test_sigterm_stops_all_processes_and_the_run_can_be_resumed(photos: Path, tmp_path: Path) -> None:
    more = (*IMAGES, "trainer=ddp", "trainer.max_epochs=200", "trainer.patience=null")
    process = start(tiny(photos, tmp_path / "run", *more))
    wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "goes on from here" in err
    assert "Traceback" not in err
    assert read_json(tmp_path / "run" / "run.json")["state"] == "unfinished"


@pytest.mark.slow
def test_an_error_of_the_first_process_is_one_line(photos: Path, tmp_path: Path) -> None:
    finish(tiny(photos, tmp_path / "run"))
    process = start(tiny(photos, tmp_path / "run", "trainer=ddp"))
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert err.strip().splitlines() == [
        f"error: run_dir={tmp_path / 'run'} holds a finished run; give another run_dir, or delete that one"
    ]


def test_several_machines_are_started_by_a_person(tmp_path: Path) -> None:
    config = composed("data=folder", f"data.root={tmp_path}", "trainer=ddp", "trainer.num_nodes=3", "run_dir=x")
    with pytest.raises(
        ConfigError,
        match=r"^trainer.num_nodes=3: start this on every machine, numbered from 0: torchrun --nnodes=3 ",
    ):
        launch(config, lambda config: None)


def test_torchrun_and_the_configuration_must_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    config = composed("data=folder", f"data.root={tmp_path}", "trainer=ddp", "run_dir=x")
    with pytest.raises(ConfigError, match=r"trainer.devices=2 x trainer.num_nodes=1: torchrun started 4 processes"):
        launch(config, lambda config: None)


def test_a_batch_smaller_than_the_number_of_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.batch_size=1 is shared by 2 processes"):
        composed("data=folder", f"data.root={tmp_path}", "trainer=ddp", "data.batch_size=1", "run_dir=x")


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_parts_of_a_batch_make_the_batch(shuffle: bool) -> None:
    whole = list(EpochOrder(29, 7, seed=3, shuffle=shuffle))
    parts = [list(EpochOrder(29, 7, seed=3, shuffle=shuffle, rank=rank, size=2)) for rank in range(2)]
    assert [len(batch) for batch in parts[1]] == [3, 3, 3, 3, 0]
    for batch, one, other in zip(whole, *parts, strict=True):
        assert sorted(one + other) == sorted(batch)
