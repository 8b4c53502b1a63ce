"""A run directory in S3: fetched, sent back, newer of both copies, and what is said when S3 is away."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from graft.errors import RunError
from graft.mirror import mirrored
from tests.s3server import Faults, FaultyProxy, client, faulty_proxy, new_bucket, running_server, use_server

BUCKET = "team"
RUN = "s3://team/runs/a"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_server() as url:
        yield url


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    new_bucket(server, BUCKET)
    with faulty_proxy(server) as proxy:
        use_server(monkeypatch, proxy.url)
        # How long retries wait is botocore's own test.
        monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0.01)
        yield proxy


def state(folder: Path, at: str, state: str = "unfinished") -> None:
    (folder / "run.json").write_text(json.dumps({"id": "1", "state": state, "reason": "", "at": at}))


def there(server: str) -> dict[str, bytes]:
    s3 = client(server)
    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])]
    return {key: s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def wait_for(server: str, key: str, content: bytes) -> None:
    etag, end = f'"{hashlib.md5(content).hexdigest()}"', time.monotonic() + 10
    while (key, etag) not in etags(server):
        assert time.monotonic() < end, etags(server)
        time.sleep(0.05)


def etags(server: str) -> set[tuple[str, str]]:
    found = client(server).list_objects_v2(Bucket=BUCKET).get("Contents", [])
    return {(entry["Key"], entry["ETag"]) for entry in found}


def test_a_new_run_is_sent_and_fetched_elsewhere(server: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    with mirrored(RUN, tmp_path / "one") as folder:
        state(folder, "2026-01-01T00:00:00+00:00")
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"weights")
        (folder / ".lock").write_text("")
        (folder / "checkpoints" / ".last.ckpt.x1").write_text("half a file")
    assert set(there(server)) == {"runs/a/run.json", "runs/a/checkpoints/last.ckpt"}
    with mirrored(RUN, tmp_path / "two") as folder:
        assert (folder / "checkpoints" / "last.ckpt").read_bytes() == b"weights"
        assert {path.name for path in folder.rglob("*") if path.is_file()} == {"run.json", "last.ckpt"}


def test_only_what_changed_is_sent(proxy: FaultyProxy, tmp_path: Path) -> None:
    for number in range(2):
        with mirrored(RUN, tmp_path) as folder:
            state(folder, "2026-01-01T00:00:00+00:00")
            (folder / "big.bin").write_bytes(b"same")
            (folder / "log.txt").write_text(f"turn {number}")
            proxy.reset()
    assert [path for method, path in proxy.requests if method == "PUT"] == ["/team/runs/a/log.txt"]
    assert proxy.count("GET", "/team/runs/a/") == 0


def test_changes_are_sent_while_the_run_goes_on(
    server: str, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graft.mirror._SETTLED_S", 0.05)
    with mirrored(RUN, tmp_path, interval_s=0.1) as folder:
        state(folder, "2026-01-01T00:00:00+00:00")
        (folder / "events").write_bytes(b"one")
        wait_for(server, "runs/a/events", b"one")
        proxy.busy(0.5)  # a turn that fails is made up for by a later one
        with (folder / "events").open("ab") as file:
            file.write(b"two")
        wait_for(server, "runs/a/events", b"onetwo")
        (folder / "events").rename(folder / "events.2")
        wait_for(server, "runs/a/events.2", b"onetwo")
    assert set(there(server)) == {"runs/a/run.json", "runs/a/events.2"}


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(143), KeyboardInterrupt()])
def test_whatever_ends_the_run_it_is_sent(
    server: str, proxy: FaultyProxy, tmp_path: Path, error: BaseException
) -> None:
    def run() -> None:
        with mirrored(RUN, tmp_path) as folder:
            state(folder, "2026-01-01T00:00:00+00:00", "failed")
            raise error

    with pytest.raises(type(error)) as caught:
        run()
    assert caught.value is error
    assert json.loads(there(server)["runs/a/run.json"])["state"] == "failed"


def test_finished_is_said_last(server: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    with mirrored(RUN, tmp_path) as folder:
        state(folder, "2026-01-01T00:00:00+00:00", "finished")
        for number in range(20):
            (folder / f"{number}.bin").write_bytes(b"x")
    assert [path for method, path in proxy.requests if method == "PUT"][-1] == "/team/runs/a/run.json"


def local_folder(staging: Path) -> Path:
    [folder] = [path for path in staging.iterdir() if path.is_dir()]
    return folder


@pytest.mark.parametrize(
    ("here", "remote", "kept"),
    [
        ("2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00", b"here"),  # killed before it was sent
        ("2026-01-02T00:00:00+00:00", "2026-01-01T00:00:00+00:00", b"here"),
        ("2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00", b"there"),  # went on on another machine
    ],
)
def test_the_newer_state_counts(
    server: str, proxy: FaultyProxy, tmp_path: Path, here: str, remote: str, kept: bytes
) -> None:
    with mirrored(RUN, tmp_path / "other") as folder:
        state(folder, remote)
        (folder / "last.ckpt").write_bytes(b"there")
    with mirrored(RUN, tmp_path / "this") as folder:
        pass
    folder = local_folder(tmp_path / "this")
    state(folder, here)
    (folder / "last.ckpt").write_bytes(b"here")
    (folder / "only-here").write_bytes(b"")
    with mirrored(RUN, tmp_path / "this") as folder:
        assert (folder / "last.ckpt").read_bytes() == kept
        assert (folder / "only-here").exists() == (kept == b"here")
    assert there(server)["runs/a/last.ckpt"] == kept


def test_a_run_killed_before_it_was_ever_sent_goes_on(server: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    with mirrored(RUN, tmp_path):
        pass
    folder = local_folder(tmp_path)
    state(folder, "2026-01-01T00:00:00+00:00")
    with mirrored(RUN, tmp_path):
        assert (folder / "run.json").exists()
    assert set(there(server)) == {"runs/a/run.json"}


def test_a_fetch_that_was_killed_does_not_count(server: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    with mirrored(RUN, tmp_path / "other") as folder:
        state(folder, "2026-01-01T00:00:00+00:00")
        (folder / "last.ckpt").write_bytes(b"there")
    with mirrored(RUN, tmp_path / "this") as folder:
        pass
    (folder / "run.json").unlink()  # it comes last
    (folder / "last.ckpt").write_bytes(b"the")
    with mirrored(RUN, tmp_path / "this"):
        assert (folder / "last.ckpt").read_bytes() == b"there"


def test_a_run_deleted_in_s3_is_gone(server: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    with mirrored(RUN, tmp_path) as folder:
        state(folder, "2026-01-01T00:00:00+00:00")
    new_bucket(server, BUCKET)
    with mirrored(RUN, tmp_path) as folder:
        assert list(folder.iterdir()) == []


def test_a_folder_that_vanished_takes_nothing_with_it(server: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    with mirrored(RUN, tmp_path) as folder:
        state(folder, "2026-01-01T00:00:00+00:00")
    with mirrored(RUN, tmp_path) as folder:
        (folder / "run.json").unlink()
    assert set(there(server)) == {"runs/a/run.json"}


def test_errors_at_the_start(server: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    client(server).put_object(Bucket=BUCKET, Key="photos/train/1.jpg", Body=b"")
    refusals = {
        "s3://team/photos": "run_dir=s3://team/photos is no run directory: it holds train/1.jpg; give a new or an "
        "empty one",
        "s3://nowhere-to-be-found/x": "run_dir=s3://nowhere-to-be-found/x cannot be opened: "
        "s3://nowhere-to-be-found/x: there is no such bucket; check the name, or make it with `aws s3 mb`",
    }
    for location, text in refusals.items():
        with pytest.raises(RunError) as caught, mirrored(location, tmp_path):
            pass
        assert str(caught.value) == text
    with (
        mirrored(RUN, tmp_path),
        pytest.raises(RunError, match=f"^run_dir={RUN} is in use by another process; give another run_dir$"),
        mirrored(RUN, tmp_path),
    ):
        pass


def test_an_object_that_leads_out_of_the_folder_is_refused(server: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    for name in ("run.json", "../../evil"):
        client(server).put_object(Bucket=BUCKET, Key=f"runs/a/{name}", Body=b"{}")
    with pytest.raises(RunError, match=r"the name \.\./\.\./evil leads out of the folder"), mirrored(RUN, tmp_path):
        pass
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize("ended_by", [None, ValueError("loss is nan")])
def test_s3_gone_at_the_end_says_where_the_copy_is(
    server: str, proxy: FaultyProxy, tmp_path: Path, ended_by: Exception | None
) -> None:
    def run() -> None:
        with mirrored(RUN, tmp_path) as folder:
            state(folder, "2026-01-01T00:00:00+00:00")
            proxy.reset(Faults(every=1))
            if ended_by:
                raise ended_by

    with pytest.raises(RunError) as caught:
        run()
    folder = local_folder(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"run_dir={RUN} could not be written ({RUN}/run.json: cannot be reached (")
    before = " (the run had ended with ValueError: loss is nan)" if ended_by else ""
    assert text.endswith(f"){before}; the local copy is {folder}, and the same command sends it first")
    proxy.reset()
    with mirrored(RUN, tmp_path):
        pass
    assert set(there(server)) == {"runs/a/run.json"}


def test_what_was_sent_is_noted_by_its_md5(server: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    with mirrored(RUN, tmp_path) as folder:
        state(folder, "2026-01-01T00:00:00+00:00")
    head = client(server).head_object(Bucket=BUCKET, Key="runs/a/run.json")
    assert head["Metadata"]["md5"] == hashlib.md5((folder / "run.json").read_bytes()).hexdigest()
