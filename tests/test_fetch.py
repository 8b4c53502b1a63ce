"""A job's run directory is fetched whole, its state last, and nothing leads out of the folder."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from graft.errors import CloudError
from graft.launcher.fetch import fetch_output, fetch_run
from tests.s3server import client, new_bucket, running_server, use_server

PLACE = "s3://runs/graft/jobs/one"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_server() as url:
        yield url


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> object:
    use_server(monkeypatch, server)
    new_bucket(server, "runs")
    return client(server)


def put(s3: object, **files: bytes) -> None:
    for name, data in files.items():
        s3.put_object(Bucket="runs", Key=f"graft/jobs/one/{name}", Body=data)  # type: ignore[attr-defined]


def test_a_run_is_fetched_but_for_the_configuration_that_is_kept(s3: object, tmp_path: Path) -> None:
    put(s3, **{"run/run.json": b"state", "run/config.yaml": b"theirs", "run/bundle/m": b"m", "run/.lock": b""})
    (tmp_path / "config.yaml").write_text("ours")
    assert fetch_run(f"{PLACE}/run", tmp_path) == 2
    assert (tmp_path / "bundle" / "m").read_bytes() == b"m"
    assert (tmp_path / "run.json").read_bytes() == b"state"
    assert (tmp_path / "config.yaml").read_text() == "ours"
    assert not (tmp_path / ".lock").exists()


def test_nothing_there_is_nothing_fetched(s3: object, tmp_path: Path) -> None:
    assert fetch_run(f"{PLACE}/run", tmp_path) == 0


def test_a_name_that_leads_out_is_refused(s3: object, tmp_path: Path) -> None:
    put(s3, **{"run/a/b": b"fine"})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").symlink_to(tmp_path)
    with pytest.raises(CloudError, match=r"the name a/b leads out of .*: this is no run directory of graft's"):
        fetch_run(f"{PLACE}/run", tmp_path / "run")


def archive(**files: bytes) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return raw.getvalue()


@pytest.mark.parametrize("before", ["", "./", "data/"])
def test_the_output_of_a_trial_is_unpacked(s3: object, tmp_path: Path, before: str) -> None:
    files = {f"{before}run/run.json": b"state", f"{before}run/bundle/m": b"m", f"{before}other": b"no"}
    put(s3, **{"output.tar.gz": archive(**files)})
    assert fetch_output(f"{PLACE}/output.tar.gz", tmp_path) == 2
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["m", "run.json"]


def test_an_archive_that_leads_out_is_refused(s3: object, tmp_path: Path) -> None:
    put(s3, **{"output.tar.gz": archive(**{"run/../../evil": b"x"})})
    with pytest.raises(CloudError, match="leads out of"):
        fetch_output(f"{PLACE}/output.tar.gz", tmp_path / "run")


def test_an_archive_that_ends_early_is_told(s3: object, tmp_path: Path) -> None:
    whole = archive(**{"run/run.json": b"state" * 100_000, "run/noise": random.Random(0).randbytes(100_000)})
    for number, content in enumerate((whole[: len(whole) // 2], whole[:40] + b"\xff\xff" + whole[42:], b"")):
        put(s3, **{f"{number}.tar.gz": content})
        with pytest.raises(CloudError, match=rf"{number}\.tar\.gz cannot be fetched to"):
            fetch_output(f"{PLACE}/{number}.tar.gz", tmp_path)


def test_no_archive_is_told(s3: object, tmp_path: Path) -> None:
    with pytest.raises(CloudError, match=r"output\.tar\.gz cannot be fetched to .*not there"):
        fetch_output(f"{PLACE}/output.tar.gz", tmp_path)
