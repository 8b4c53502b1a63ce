"""Whole runs on photos, weights and run directories in S3: a real server over HTTP, also one that misbehaves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from graft.data.upload import upload
from graft.errors import DataError, GraftError, RunError
from graft.features.cache import usage
from graft.model import build_backbone
from tests.breeds import BREEDS
from tests.pictures import draw, draw_folder, write
from tests.s3server import (
    Faults,
    FaultyProxy,
    client,
    faulty_proxy,
    forget_account,
    new_bucket,
    running_server,
    use_server,
)
from tests.training import lasting, read_json, run, start, tiny

BUCKET = "photos"


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultyProxy]:
    with running_server() as url, faulty_proxy(url) as found:
        yield found


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def expected(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The metrics of a run on the local folder."""
    return run(tiny(photos, tmp_path_factory.mktemp("local") / "run")).metrics


@pytest.fixture
def root(proxy: FaultyProxy, photos: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The photos in S3, behind a proxy that behaves so far."""
    new_bucket(proxy.target, BUCKET)
    use_server(monkeypatch, proxy.url)
    proxy.reset()
    upload(photos, f"s3://{BUCKET}/set")
    proxy.reset()
    return f"s3://{BUCKET}/set"


def remote(root: str, run_dir: Path | str, cache: Path, *more: str) -> list[str]:
    return [*tiny(Path("unused"), Path("unused")), f"data.root={root}", f"run_dir={run_dir}",
            f"features.cache_dir={cache}", *more]  # fmt: skip


def test_photos_in_s3_give_the_metrics_of_the_folder_and_are_fetched_once(
    root: str, proxy: FaultyProxy, expected: dict[str, float], tmp_path: Path
) -> None:
    found = run(remote(root, tmp_path / "run", tmp_path / "cache")).metrics
    assert lasting(found) == lasting(expected)
    fetched = [path for (method, path), _ in proxy.requests.items() if method == "GET" and "list-type" not in path]
    assert len(fetched) == proxy.count("GET", "/set/") == 60
    again = run(remote(root, tmp_path / "again", tmp_path / "cache")).metrics
    assert lasting(again) == lasting(expected)
    assert proxy.count("GET", "/set/") == 60


def test_without_local_copies_a_frozen_run_reads_each_photo_once(
    root: str, proxy: FaultyProxy, expected: dict[str, float], tmp_path: Path
) -> None:
    found = run(remote(root, tmp_path / "run", tmp_path / "cache", "data.cache_gb=0")).metrics
    assert lasting(found) == lasting(expected)
    # and the photos of valid that the bundle shows once more, and the 8 mistakes that the report does
    assert proxy.count("GET", "/set/") == 60 + 12 + 8
    assert not (tmp_path / "cache" / "objects").exists()


@pytest.mark.parametrize(
    "faults", [Faults(every=5), Faults(every=5, kind="cut"), Faults(every=7, kind="spoil"), Faults(delay=0.05)],
    ids=["drop", "cut", "spoil", "slow"],
)  # fmt: skip
@pytest.mark.slow
def test_a_bad_connection_changes_nothing(
    root: str, proxy: FaultyProxy, expected: dict[str, float], tmp_path: Path, faults: Faults
) -> None:
    proxy.reset(faults)
    found = run(remote(root, tmp_path / "run", tmp_path / "cache")).metrics
    assert lasting(found) == lasting(expected)


@pytest.mark.slow
def test_a_server_that_is_busy_for_a_while_changes_nothing(
    root: str, proxy: FaultyProxy, expected: dict[str, float], tmp_path: Path
) -> None:
    proxy.busy(2)
    found = run(remote(root, tmp_path / "run", tmp_path / "cache")).metrics
    assert lasting(found) == lasting(expected)


@pytest.mark.slow
def test_images_are_read_from_s3_in_every_epoch(root: str, photos: Path, tmp_path: Path) -> None:
    more = ("features.enabled=false", "trainer.max_epochs=1")
    whole = run(tiny(photos, tmp_path / "whole", *more)).metrics
    found = run(remote(root, tmp_path / "run", tmp_path / "cache", "data.cache_gb=0", "data.workers=2", *more)).metrics
    assert lasting(found) == pytest.approx(lasting(whole), abs=1e-6)


def refused(overrides: list[str]) -> str:
    """The one line that a run ends with."""
    process = start(overrides)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2, err
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.slow
def test_a_missing_bucket_is_one_clear_error(root: str, tmp_path: Path) -> None:
    said = refused(remote("s3://nowhere-at-all/set", tmp_path / "run", tmp_path / "cache"))
    assert "s3://nowhere-at-all" in said
    assert "bucket" in said
    assert not usage(tmp_path / "cache" / "features")


@pytest.mark.slow
def test_no_credentials_is_one_clear_error(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_account(monkeypatch)
    said = refused(remote(root, tmp_path / "run", tmp_path / "cache"))
    assert "credentials" in said
    assert "AWS_ACCESS_KEY_ID" in said


@pytest.mark.slow
def test_an_object_that_changes_midway_is_one_clear_error(
    root: str, proxy: FaultyProxy, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graft.s3 import S3Store

    listed, other = S3Store.list, (photos / "train" / "class_1" / "000.jpg").read_bytes()

    def list_then_change(store: S3Store, folder: str = "") -> object:
        found = listed(store, folder)
        client(proxy.target).put_object(Bucket=BUCKET, Key="set/train/class_0/003.jpg", Body=other + b"changed")
        return found

    monkeypatch.setattr(S3Store, "list", list_then_change)
    with pytest.raises(DataError, match=rf"s3://{BUCKET}/set/train/class_0/003.jpg changed"):
        run(remote(root, tmp_path / "run", tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob(".*.npy.*"))  # nothing half-written
    monkeypatch.setattr(S3Store, "list", listed)
    metrics = run(remote(root, tmp_path / "run", tmp_path / "cache")).metrics  # the same command goes on
    assert metrics["valid/images"] == 12


@pytest.mark.slow
def test_weights_in_s3_are_those_of_the_file(root: str, proxy: FaultyProxy, photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(build_backbone("squeezenet1_1", seed=7).state_dict(), file)
    client(proxy.target).upload_file(str(file), BUCKET, "weights/w.pth")
    whole = run(tiny(photos, tmp_path / "whole", f"model.weights={file}")).metrics
    weights = f"model.weights=s3://{BUCKET}/weights/w.pth"
    found = run(tiny(photos, tmp_path / "run", f"features.cache_dir={tmp_path / 'cache'}", weights)).metrics
    assert lasting(found) == lasting(whole)
    manifest = read_json(tmp_path / "run" / "bundle" / "manifest.json")
    assert manifest["weights"] == f"s3://{BUCKET}/weights/w.pth"


@pytest.mark.slow
def test_a_run_directory_in_s3_holds_the_run_and_resumes_on_another_machine(
    root: str, proxy: FaultyProxy, photos: Path, expected: dict[str, float], tmp_path: Path
) -> None:
    place = f"s3://{BUCKET}/runs/one"
    overrides = [*tiny(photos, Path("unused")), f"run_dir={place}", f"features.cache_dir={tmp_path / 'cache'}"]
    with pytest.raises(SystemExit):
        run_until_terminated(overrides)
    keys = {entry["Key"] for entry in client(proxy.target).list_objects_v2(Bucket=BUCKET, Prefix="runs/")["Contents"]}
    assert {"runs/one/config.yaml", "runs/one/run.json", "runs/one/checkpoints/last.ckpt"} <= keys
    shutil.rmtree(tmp_path / "cache" / "runs")  # the other machine has no copy
    result = run(overrides)
    assert lasting(result.metrics) == pytest.approx(lasting(expected), abs=1e-6)
    client(proxy.target).download_file(BUCKET, "runs/one/metrics.json", str(tmp_path / "metrics.json"))
    assert read_json(tmp_path / "metrics.json") == result.metrics
    shutil.rmtree(tmp_path / "cache" / "runs")
    with pytest.raises(RunError, match="holds a finished run"):
        run(overrides)


def run_until_terminated(overrides: list[str]) -> None:
    """A run that is told to stop after its first epoch."""
    import signal

    from graft import callbacks

    def stop(self: object, trainer: object, *rest: object) -> None:
        if trainer.global_step == 7:  # type: ignore[attr-defined]
            signal.raise_signal(signal.SIGTERM)

    patch = pytest.MonkeyPatch()
    patch.setattr(callbacks.OnDevice, "on_train_batch_end", stop, raising=False)
    try:
        run(overrides)
    finally:
        patch.undo()


@pytest.mark.slow
def test_the_manifest_has_udacitys_breeds_in_label_order_from_the_folder_and_from_s3(root: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for label, breed in enumerate(BREEDS):
        for split in ("train", "valid"):
            rng = np.random.default_rng((label, len(split)))
            write(photos / split / breed / "0.png", draw(label, rng, size=32))
    upload(photos, f"s3://{BUCKET}/breeds")
    short = ("trainer.max_epochs=1", "data.batch_size=128")
    runs = (
        tiny(photos, tmp_path / "here", *short),
        remote(f"s3://{BUCKET}/breeds", tmp_path / "s3", tmp_path / "c", *short),
    )
    for overrides in runs:
        names = read_json(run(overrides).run_dir / "bundle" / "manifest.json")["class_names"]
        assert [names.index(name) for name in ("004.Akita", "023.Bernese_mountain_dog", "081.Greyhound")] == [3, 22, 80]
        assert len(names) == 133


def test_a_sweep_in_s3_and_other_urls_are_refused(root: str, tmp_path: Path) -> None:
    process = start(["seed=0,1", *remote(root, f"s3://{BUCKET}/runs", tmp_path)], "-m")
    _, err = process.communicate(timeout=60)
    assert err.strip() == f"error: run_dir=s3://{BUCKET}/runs: accepted under -m is a local path"
    with pytest.raises(GraftError, match=r"^data.root=gs://b/x: accepted is a local path or s3://BUCKET/PREFIX$"):
        run(remote("gs://b/x", tmp_path / "run", tmp_path / "cache"))
    with pytest.raises(GraftError, match=r"^model.weights=https://x/w.pth: accepted is a name, a local file or s3"):
        run(remote(root, tmp_path / "other", tmp_path / "cache", "model.weights=https://x/w.pth"))


@pytest.mark.slow
def test_two_processes_read_half_of_the_objects_each(
    root: str, proxy: FaultyProxy, expected: dict[str, float], tmp_path: Path
) -> None:
    process = start(remote(root, tmp_path / "run", tmp_path / "cache", "trainer=ddp", "data.cache_gb=0"))
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert proxy.count("GET", "/set/") == 60 + 12 + 8
    assert lasting(read_json(tmp_path / "run" / "metrics.json")) == pytest.approx(lasting(expected), abs=1e-5)
