"""`python -m graft.data upload` and `list`: what is sent, what is not, kills, refusals, and class order."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from graft.data.__main__ import main
from graft.data.upload import UploadReport, upload
from graft.errors import DataError
from graft.s3 import S3Store
from graft.signals import exit_when_told
from tests.breeds import BREEDS
from tests.pictures import encode
from tests.s3server import Faults, FaultyProxy, client, faulty_proxy, new_bucket, running_server, use_server

BUCKET = "mine"
TARGET = "s3://mine/set"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_server() as url:
        yield url


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    new_bucket(server, BUCKET)
    with faulty_proxy(server) as proxy:
        use_server(monkeypatch, proxy.url)
        yield proxy


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return put(
        tmp_path / "photos",
        *(f"{split}/{kind}/{n}.jpg" for split in ("train", "valid") for kind in "ab" for n in range(5)),
    )


def put(root: Path, *names: str) -> Path:
    """Files whose content is their name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def there(server: str) -> dict[str, bytes]:
    s3 = client(server)
    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])]
    return {key.removeprefix("set/"): s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def here(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_all_is_sent_once(server: str, proxy: FaultyProxy, photos: Path) -> None:
    size = sum(map(len, here(photos).values()))
    assert upload(photos, TARGET) == UploadReport(20, size, 0, ())
    assert there(server) == here(photos)
    proxy.reset()
    assert upload(photos, f"{TARGET}/") == UploadReport(0, 0, 20, ())
    assert (proxy.count("PUT"), proxy.count("POST"), proxy.count("HEAD", "jpg")) == (0, 0, 0)


def test_only_what_changed_is_sent(server: str, proxy: FaultyProxy, photos: Path) -> None:
    upload(photos, TARGET)
    (photos / "train/a/0.jpg").write_text("train/a/?.jpg")  # of the same size
    put(photos, "train/a/new.jpg")
    (photos / "valid/b/4.jpg").unlink()
    proxy.reset()
    assert upload(photos, TARGET) == UploadReport(2, 13 + 15, 18, ("valid/b/4.jpg",))
    assert proxy.count("PUT") == 2
    assert there(server) == {**here(photos), "valid/b/4.jpg": b"valid/b/4.jpg"}


def test_what_has_no_md5_for_an_etag_is_known_by_what_was_noted(
    server: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    """Sent in parts, as files from 8 MiB on are."""
    source = tmp_path / "photos"
    source.mkdir()
    data = np.random.default_rng(0).bytes(9_000_000)
    (source / "big.bin").write_bytes(data)
    assert upload(source, TARGET).sent == 1
    [entry] = client(server).list_objects_v2(Bucket=BUCKET)["Contents"]
    assert entry["ETag"].endswith('-2"')
    proxy.reset()
    assert upload(source, TARGET) == UploadReport(0, 0, 1, ())
    assert (proxy.count("PUT"), proxy.count("POST")) == (0, 0)
    (source / "big.bin").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert upload(source, TARGET).sent == 1


def test_a_bad_network_does_not_matter(
    server: str, proxy: FaultyProxy, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0.01)
    proxy.reset(Faults(every=4))
    assert upload(photos, TARGET).sent == 20
    assert there(server) == here(photos)


def test_what_graft_ignores_stays_here(server: str, proxy: FaultyProxy, photos: Path) -> None:
    put(photos, ".DS_Store", "train/a/.hidden.jpg", "__MACOSX/a.jpg", "train/a/Thumbs.db", "train/.cache/b.jpg")
    assert upload(photos, TARGET).sent == 20


def test_linked_classes_are_sent_and_circles_are_not(server: str, proxy: FaultyProxy, photos: Path) -> None:
    (photos / "train/c").symlink_to(put(photos.parent / "elsewhere", "1.jpg"))
    (photos / "train/a/deep").mkdir()
    (photos / "train/a/deep/up").symlink_to(photos)
    assert upload(photos, TARGET).sent == 21
    assert there(server)["train/c/1.jpg"] == b"1.jpg"


def test_progress_is_told_in_bytes(proxy: FaultyProxy, photos: Path) -> None:
    seen: list[tuple[str, int]] = []

    @contextmanager
    def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
        seen.append((title, total))
        yield lambda count: seen.append(("", count))

    upload(photos, TARGET, progress=bar)
    assert seen[0] == ("uploading to s3://mine/set", 20 * 13)
    assert seen[1:] == [("", 13)] * 20


@pytest.mark.slow
def test_a_killed_upload_goes_on(server: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    photos = put(tmp_path / "photos", *(f"train/a/{number:03d}.jpg" for number in range(120)))
    proxy.reset(Faults(delay=0.1))
    command = [sys.executable, "-m", "graft.data", "upload", str(photos), TARGET]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    end = time.monotonic() + 60
    while proxy.count("PUT") < 40:
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(2)  # what was on its way arrives; moto shows an object before it is whole
    before = there(server)
    assert 20 <= len(before) < 120
    assert before.items() <= here(photos).items()  # each object is whole
    proxy.reset()
    assert upload(photos, TARGET) == UploadReport(120 - len(before), 15 * (120 - len(before)), len(before), ())
    assert proxy.count("PUT") == 120 - len(before)


def test_objects_that_vanish_are_missed(
    server: str, proxy: FaultyProxy, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graft.s3 import S3Store

    send = S3Store.put

    def lose(store: S3Store, name: str, content: bytes | Path, md5: str) -> None:
        send(store, name, b"of another" if name == "train/b/1.jpg" else content, md5)
        if name == "train/b/3.jpg":
            store.delete(name)

    monkeypatch.setattr(S3Store, "put", lose)
    with pytest.raises(DataError) as caught:
        upload(photos, TARGET)
    assert str(caught.value) == (
        "s3://mine/set: 2 of 20 files are missing or differ after the upload, the first is train/b/1.jpg; something "
        "else writes or deletes there; run again"
    )


def test_a_file_that_changes_meanwhile_is_named(
    proxy: FaultyProxy, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graft.s3 import S3Store

    def change(store: S3Store, name: str, content: bytes | Path, md5: str) -> None:
        if name == "train/a/3.jpg":
            (photos / name).write_text("something else")

    monkeypatch.setattr(S3Store, "put", change)
    with pytest.raises(DataError, match=r"^SRC: .*/train/a/3.jpg changed while it was sent; run again$"):
        upload(photos, TARGET)


def test_refusals(proxy: FaultyProxy, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refusals = {
        (tmp_path / "no", TARGET): f"SRC={tmp_path}/no: no such folder; accepted is a folder",
        (photos / "train/a/0.jpg", TARGET): f"SRC={photos}/train/a/0.jpg: not a folder; accepted is a folder",
        (tmp_path / "empty", TARGET): f"SRC={tmp_path}/empty: no files in it; accepted is a folder of photos",
        (photos, "mine/set"): "mine/set is no place in S3; accepted is s3://BUCKET or s3://BUCKET/PREFIX",
        (
            photos,
            "s3://nobody/x",
        ): "s3://nobody/x: there is no such bucket; check the name, or make it with `aws s3 mb`",
    }
    for (source, target), text in refusals.items():
        with pytest.raises(DataError) as caught:
            upload(source, target)
        assert str(caught.value) == text
    (photos / "train" / os.fsdecode(b"\xe9.jpg")).write_text("")
    with pytest.raises(DataError, match=r"^SRC: the name train/\\xe9.jpg is not UTF-8, which S3 asks for; rename it$"):
        upload(photos, TARGET)
    assert proxy.count("PUT") == 0


def test_the_command_says_what_it_did(proxy: FaultyProxy, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upload", str(photos), TARGET]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "s3://mine/set: 20 sent (0.0 MB), 0 unchanged, all verified by size and MD5",
        "next: python train.py data=folder data.root=s3://mine/set",
    ]
    (photos / "train/a/0.jpg").unlink()
    assert main(["upload", str(photos), TARGET]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "s3://mine/set: 0 sent (0.0 MB), 19 unchanged, all verified by size and MD5",
        "not in LOCAL, and left there: 1: train/a/0.jpg",
        "next: python train.py data=folder data.root=s3://mine/set",
    ]
    assert main(["upload", str(photos), "nowhere"]) == 2
    assert capsys.readouterr().err == (
        "error: nowhere is no place in S3; accepted is s3://BUCKET or s3://BUCKET/PREFIX\n"
    )


def test_udacitys_breeds_have_their_labels_here_and_in_s3(
    server: str, proxy: FaultyProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = encode(np.zeros((8, 8, 3), np.uint8))
    for breed in BREEDS:
        path = tmp_path / "dogImages/train" / breed / f"{breed[4:]}_00001.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(photo + breed.encode())
    put(tmp_path / "dogImages", "valid/004.Akita/Akita_00002.jpg", "test/081.Greyhound/Greyhound_00003.jpg")
    assert main(["upload", str(tmp_path / "dogImages"), "s3://mine/dogImages"]) == 0
    capsys.readouterr()
    proxy.reset()
    for place in (str(tmp_path / "dogImages"), "s3://mine/dogImages"):
        assert main(["list", place, "--json"]) == 0
        names = json.loads(capsys.readouterr().out)
        assert [names.index(name) for name in ("004.Akita", "023.Bernese_mountain_dog", "081.Greyhound")] == [3, 22, 80]
        assert tuple(names) == BREEDS
        assert main(["list", place]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [lines[index] for index in (3, 22, 80, 132)] == [
            "  3  004.Akita",
            " 22  023.Bernese_mountain_dog",
            " 80  081.Greyhound",
            "132  133.Yorkshire_terrier",
        ]
    # For each of the two lists: the splits, and the classes of each. No photo is listed.
    assert proxy.count("GET") == 8
    assert all("delimiter=/" in path for method, path in proxy.requests if method == "GET")


def test_md5_of_an_upload_is_noted(server: str, proxy: FaultyProxy, photos: Path) -> None:
    upload(photos, TARGET)
    noted = client(server).head_object(Bucket=BUCKET, Key="set/train/a/0.jpg")["Metadata"]
    assert noted == {"md5": hashlib.md5(b"train/a/0.jpg").hexdigest()}


def test_a_signal_amid_an_upload_leaves_nothing_on_its_way(server: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(40 * 2**20))  # five parts
    store = S3Store(f"s3://{BUCKET}")
    told = threading.Event()

    def tell(**_: object) -> None:
        if not told.is_set():
            told.set()
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)  # the others are on their way meanwhile

    store._connection.client.meta.events.register("before-send.s3.UploadPart", tell)
    with exit_when_told(), pytest.raises(SystemExit):
        store.put("large", large, "md5")
    store.delete("large")  # what a rollback does
    store._connection.transfers.shutdown()  # waits for whatever goes on
    assert not store.present().names
    assert "Uploads" not in client(server).list_multipart_uploads(Bucket=BUCKET)
