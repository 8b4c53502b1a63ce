"""A zip file of photos from real servers on this machine: whole or not at all, whatever breaks in between."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from graft.data import download
from graft.data.archive import fetch_archive
from graft.data.download import http_url
from graft.errors import ConfigError, DataError
from graft.terminal import progress_bar
from tests.composing import ROOT

BREEDS = [f"{number:03d}.Breed_{number}" for number in range(1, 134)]


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in entries.items():
            file.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return buffer.getvalue()


def udacity(photo_bytes: int = 2000, seed: int = 0) -> bytes:
    """Udacity's layout: dogImages/ around three splits of 133 breeds, and what macOS leaves in a zip."""
    rng = random.Random(seed)
    entries = {"dogImages/": b"", "dogImages/.DS_Store": b"x", "__MACOSX/dogImages/._train": b"x", "__MACOSX/": b""}
    for split in ("train", "valid", "test"):
        entries[f"dogImages/{split}/"] = b""
        for breed in BREEDS:
            entries[f"dogImages/{split}/{breed}/{breed}_00001.jpg"] = rng.randbytes(photo_bytes)
    return zipped(entries)


@dataclass
class Place:
    """What a small server with ranges serves, how it misbehaves, and what it was asked for."""

    content: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    conditions: bool = True  # If-Match is obeyed
    breaks_after: list[int] = field(default_factory=list)  # bytes of the next bodies; then whole ones
    answers: list[int] = field(default_factory=list)  # codes of the next answers; then the file
    pause_s: float = 0.0  # after every 64 KB
    heads: list[dict[str, str]] = field(default_factory=list)
    served: list[int] = field(default_factory=list)  # body bytes of each answer
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    place: Place

    def do_GET(self) -> None:
        place = self.place
        place.heads.append(dict(self.headers))
        if place.answers:
            self.send_error(place.answers.pop(0))
            return
        wanted = self.headers.get("If-Match")
        if wanted and wanted != place.etag and place.conditions:
            self.send_error(412)
            return
        asked = self.headers.get("Range") if place.ranges else None
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(place.content) - 1}/{len(place.content)}")
        self.send_header("Content-Length", str(len(place.content) - start))
        if place.etag:
            self.send_header("ETag", place.etag)
        self.end_headers()
        end = start + place.breaks_after.pop(0) if place.breaks_after else len(place.content)
        self.send_body(place.content[start:end])

    def send_body(self, body: bytes) -> None:
        served = self.place.served  # a test puts a new list there while an old connection ends
        served.append(0)
        number = len(served) - 1
        with contextlib.suppress(ConnectionError):  # whoever asked was killed
            for at in range(0, len(body), 65536):
                self.wfile.write(body[at : at + 65536])
                served[number] += len(body[at : at + 65536])
                time.sleep(self.place.pause_s)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def serving(place: Place) -> Iterator[Place]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"place": place}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    place.url = f"http://127.0.0.1:{server.server_port}/dogImages.zip"
    try:
        yield place
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSE_S", 0.01)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


class Bars:
    """Stands for the bars of a terminal: title, total, and the sum of what they were advanced by."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    @contextlib.contextmanager
    def __call__(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        counts: list[int] = []
        yield counts.append
        self.seen.append((title, total, sum(counts)))


def fetch(url: str, target: Path, *, size: int | None = None, bars: Bars | None = None) -> None:
    fetch_archive(url, target, size=size, region="us-west-1", progress=bars or Bars())


def refusal(url: str, target: Path, *, size: int | None = None) -> str:
    with pytest.raises(DataError) as caught:
        fetch(url, target, size=size)
    return str(caught.value)


def assert_whole(target: Path, content: bytes) -> None:
    """Every photo of the zip, and nothing else, is below the target; beside it lies only the lock."""
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        photos = {name.removeprefix("dogImages/"): opened.read(name) for name in opened.namelist() if "jpg" in name}
    found = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert len(photos) == 3 * 133
    assert found == photos
    assert beside(target) - {f".{target.name}.lock"} == {target.name}


def beside(target: Path) -> set[str]:
    return set(os.listdir(target.parent))


def test_the_three_splits_are_unpacked_without_the_folder_around_them(tmp_path: Path) -> None:
    content, bars, target = udacity(), Bars(), tmp_path / "data" / "dogImages"
    with serving(Place(content)) as place:
        fetch(place.url, target, size=len(content), bars=bars)
        assert_whole(target, content)
        photos = 3 * 133 * 2000
        assert bars.seen == [("downloading", len(content), len(content)), ("unzipping", photos, photos)]
        fetch(place.url, target)
    assert len(place.heads) == 1, "what is there is not asked for again"


def test_a_connection_that_breaks_goes_on_where_it_broke(tmp_path: Path) -> None:
    content, bars, target = udacity(), Bars(), tmp_path / "dogs"
    # More often than is tried without a new byte.
    with serving(Place(content, breaks_after=[50_000] * 8)) as place:
        fetch(place.url, target, bars=bars)
    assert_whole(target, content)
    assert sum(place.served) == len(content), "no byte was sent twice"
    assert [head.get("Range") for head in place.heads] == [None, *(f"bytes={n * 50_000}-" for n in range(1, 9))]
    assert {head.get("If-Match") for head in place.heads[1:]} == {'"one"'}
    assert bars.seen[0] == ("downloading", len(content), len(content))


def test_a_server_that_is_busy_for_a_while_is_asked_again(tmp_path: Path) -> None:
    content = udacity()
    with serving(Place(content, answers=[503, 500, 429, 503])) as place:
        fetch(place.url, tmp_path / "dogs")
    assert_whole(tmp_path / "dogs", content)


def test_a_server_without_ranges_starts_again_and_ends(tmp_path: Path) -> None:
    content, bars = udacity(), Bars()
    with serving(Place(content, ranges=False, breaks_after=[400_000, 300_000])) as place:
        fetch(place.url, tmp_path / "dogs", bars=bars)
        assert_whole(tmp_path / "dogs", content)
        assert bars.seen[0] == ("downloading", len(content), len(content))
        place.breaks_after = [400_000] * 100
        assert "the connection breaks, 5 times in a row" in refusal(place.url, tmp_path / "other")
    assert len(place.heads) == 3 + 6


def test_without_an_etag_nothing_is_appended(tmp_path: Path) -> None:
    content = udacity()
    with serving(Place(content, etag=None, breaks_after=[400_000])) as place:
        fetch(place.url, tmp_path / "dogs")
    assert_whole(tmp_path / "dogs", content)
    assert [head.get("Range") for head in place.heads] == [None, None]


@pytest.mark.parametrize("honest", [True, False], ids=["answers 412", "ignores If-Match"])
def test_an_archive_that_changed_between_two_attempts_starts_again(tmp_path: Path, honest: bool) -> None:
    old, new, target = udacity(seed=0), udacity(seed=1), tmp_path / "dogs"
    assert len(old) == len(new)
    with serving(Place(old, breaks_after=[300_000, *[0] * 5])) as place:
        refusal(place.url, target)
        assert (tmp_path / ".dogs.zip.part").read_bytes() == old[:300_000]
        place.content, place.etag, place.conditions, place.heads = new, '"two"', honest, []
        fetch(place.url, target)
    assert_whole(target, new)
    assert [head.get("Range") for head in place.heads] == ["bytes=300000-", None]


def test_another_url_does_not_go_on_with_what_the_first_left(tmp_path: Path) -> None:
    first, second = udacity(seed=0), udacity(seed=1)
    with serving(Place(first, breaks_after=[300_000, *[0] * 5])) as place, serving(Place(second)) as other:
        refusal(place.url, tmp_path / "dogs")
        fetch(other.url, tmp_path / "dogs")
    assert_whole(tmp_path / "dogs", second)


PROGRAM = """
import contextlib, sys, time
from pathlib import Path
from graft.data.archive import fetch_archive
url, target, pause = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
@contextlib.contextmanager
def bar(title, total):
    yield lambda count: time.sleep(pause if title == "unzipping" else 0)
fetch_archive(url, target, size=None, region=None, progress=bar)
"""


def start(url: str, target: Path, pause_s: float = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, url, str(target), str(pause_s)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def kill_when(happens: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 20
    while not happens():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_killed_while_it_downloads_it_goes_on(tmp_path: Path) -> None:
    content, target, part = udacity(10_000), tmp_path / "dogs", tmp_path / ".dogs.zip.part"
    with serving(Place(content, pause_s=0.02)) as place:
        kill_when(lambda: part.exists() and part.stat().st_size > 500_000, start(place.url, target))
        have = part.stat().st_size
        assert 500_000 < have < len(content)
        assert not target.exists()
        place.pause_s, place.served, place.heads = 0, [], []
        fetch(place.url, target)
    assert_whole(target, content)
    assert (place.served, place.heads[0]["Range"]) == ([len(content) - have], f"bytes={have}-")


def test_killed_while_it_unzips_it_needs_no_network(tmp_path: Path) -> None:
    content, target, fresh = udacity(), tmp_path / "dogs", tmp_path / ".dogs.unzipping"
    with serving(Place(content)) as place:
        kill_when(lambda: len(list(fresh.rglob("*.jpg"))) > 20, start(place.url, target, 0.01))
    assert not target.exists()
    assert 20 < len(list(fresh.rglob("*.jpg"))) < 3 * 133
    fetch(place.url, target)  # the server is gone
    assert_whole(target, content)


def test_a_download_left_beside_the_photos_is_removed(tmp_path: Path) -> None:
    content, target = udacity(), tmp_path / "dogs"
    with serving(Place(content)) as place:
        fetch(place.url, target)
    (tmp_path / ".dogs.zip.part").write_bytes(content)
    (tmp_path / ".dogs.zip.part.json").write_text("{}")
    fetch(place.url, target)  # the server is gone
    assert_whole(target, content)


def test_of_two_processes_one_fetches_and_the_other_waits(tmp_path: Path) -> None:
    content, target = udacity(), tmp_path / "dogs"
    with serving(Place(content, pause_s=0.1)) as place:
        processes = [start(place.url, target) for _ in range(2)]
        said = sorted(process.communicate(timeout=30)[1] for process in processes)
    assert [process.returncode for process in processes] == [0, 0], said
    assert said == [
        f"{target} is not there: fetching {place.url}\n",
        f"another process fetches {target}; waiting for it\n",
    ]
    assert place.served == [len(content)]
    assert_whole(target, content)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The endpoint of moto's S3 server."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from moto.server import ThreadedMotoServer
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def client(endpoint: str) -> Any:
    import boto3

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)


def test_a_public_object_of_s3(tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, url, target = udacity(), "s3://udacity-aind/dog-project/dogImages.zip", tmp_path / "dogs"
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    bucket = client(s3)
    bucket.create_bucket(Bucket="udacity-aind")
    assert f"data.archive={url}: {s3}/udacity-aind/dog-project/dogImages.zip is not there (404" in refusal(url, target)
    bucket.put_object(Bucket="udacity-aind", Key="dog-project/dogImages.zip", Body=content)
    private = f"{s3}/udacity-aind/dog-project/dogImages.zip is denied to the public (403"
    assert refusal(url, target).startswith(f"data.archive={url}: {private}")
    bucket.put_object_acl(Bucket="udacity-aind", Key="dog-project/dogImages.zip", ACL="public-read")
    fetch(url, target, size=len(content))
    assert_whole(target, content)


def test_an_object_of_s3_goes_on_where_it_broke(tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, bars = udacity(), Bars()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    bucket = client(s3)
    bucket.create_bucket(Bucket="broken")
    bucket.put_object(Bucket="broken", Key="dogs.zip", Body=content, ACL="public-read")
    starts: list[int] = []
    chunks = download._chunks

    def broken(body: Any) -> Iterator[bytes]:
        starts.append(int(body.headers.get("Content-Range", "bytes 0-").split("-")[0].split()[1]))
        yield next(chunks(body))[:300_000]

    monkeypatch.setattr(download, "CHUNK", 300_000)
    monkeypatch.setattr(download, "_chunks", broken)
    fetch("s3://broken/dogs.zip", tmp_path / "dogs", bars=bars)
    assert_whole(tmp_path / "dogs", content)
    assert starts[0] == 0
    assert starts == sorted(set(starts)), "each byte is asked for once"
    assert bars.seen[0] == ("downloading", len(content), len(content))


def test_the_md5_of_s3_is_checked(tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = udacity()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    bucket = client(s3)
    bucket.create_bucket(Bucket="sums")
    bucket.put_object(Bucket="sums", Key="dogs.zip", Body=content, ACL="public-read")
    chunks = download._chunks

    def flipped(body: Any) -> Iterator[bytes]:
        for number, chunk in enumerate(chunks(body)):
            yield bytes([chunk[0] ^ 1]) + chunk[1:] if number == 0 else chunk

    with monkeypatch.context() as patched:
        patched.setattr(download, "_chunks", flipped)
        message = refusal("s3://sums/dogs.zip", tmp_path / "dogs")
    bad = hashlib.md5(bytes([content[0] ^ 1]) + content[1:]).hexdigest()
    assert message == (
        f"data.archive=s3://sums/dogs.zip: {s3}/sums/dogs.zip was damaged on the way: its MD5 is {bad} in place of "
        f"{hashlib.md5(content).hexdigest()}; it was removed, and the same command downloads it again"
    )
    assert beside(tmp_path / "dogs") <= {".dogs.lock"}
    fetch("s3://sums/dogs.zip", tmp_path / "dogs")
    assert_whole(tmp_path / "dogs", content)


def test_the_etag_of_a_multipart_upload_is_no_md5(tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from boto3.s3.transfer import TransferConfig

    content = udacity(15_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    bucket = client(s3)
    bucket.create_bucket(Bucket="parts")
    parts = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20, use_threads=False)
    bucket.upload_fileobj(io.BytesIO(content), "parts", "dogs.zip", ExtraArgs={"ACL": "public-read"}, Config=parts)
    assert bucket.head_object(Bucket="parts", Key="dogs.zip")["ETag"].endswith('-2"')
    fetch("s3://parts/dogs.zip", tmp_path / "dogs")
    assert_whole(tmp_path / "dogs", content)


ADDRESSES = [
    ("s3://bucket/a/b c.zip", "eu-west-1", "https://bucket.s3.eu-west-1.amazonaws.com/a/b%20c.zip"),
    ("s3://bucket/b.zip", None, "https://bucket.s3.amazonaws.com/b.zip"),
    ("s3://my.bucket/b.zip", "us-west-1", "https://s3.us-west-1.amazonaws.com/my.bucket/b.zip"),
    ("https://example.org/b.zip?x=1", "us-west-1", "https://example.org/b.zip?x=1"),
]


@pytest.mark.parametrize(("url", "region", "expected"), ADDRESSES)
def test_the_address_of_a_url(url: str, region: str | None, expected: str) -> None:
    assert http_url(url, region) == expected


# A name that is not ASCII, a blank, a bracket that is not closed.
UNREADABLE = ("https://example.org/\u00fcber.zip", "https://example.org/a b.zip", "https://[::1/a.zip")


@pytest.mark.parametrize(
    "url", ["ftp://example.org/a.zip", "/data/a.zip", "s3://bucket", "s3:///a.zip", "file:///a", *UNREADABLE]
)
def test_another_kind_of_url_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        fetch(url, tmp_path / "dogs")
    accepted = "accepted is s3://BUCKET/KEY, https:// or http:// with a zip file"
    assert str(caught.value) == f"data.archive={url}: {accepted}"


@pytest.mark.parametrize("endpoint", ["localhost:9000", "http://[::1", "http://"])
def test_an_endpoint_that_is_none_is_named(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ConfigError) as caught:
        http_url("s3://bucket/b.zip", None)
    assert str(caught.value) == f"AWS_ENDPOINT_URL={endpoint}: accepted is http:// or https:// with a host"


def test_without_a_network_it_says_how_to_go_on(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/dogs.zip"
    assert refusal(url, tmp_path / "dogs") == (
        f"data.archive={url}: {url} cannot be downloaded: Connection refused, 5 times in a row; the same command goes "
        "on where it stopped; by hand: get that zip file from a machine with a network and unzip it so that "
        f"{tmp_path / 'dogs' / 'train'} is there"
    )
    assert beside(tmp_path / "dogs") <= {".dogs.lock"}


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/dogs.zip"
        assert "cannot be downloaded: timed out, 5 times in a row" in refusal(url, tmp_path / "dogs")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (401, "is denied to the public (401 Unauthorized), or there is no such file"),
        (403, "is denied to the public (403 Forbidden), or there is no such file"),
        (404, "is not there (404 Not Found)"),
        (418, "cannot be downloaded: the server answered 418 I'm a Teapot"),
    ],
)
def test_an_answer_that_no_patience_mends_is_given_at_once(tmp_path: Path, code: int, message: str) -> None:
    with serving(Place(b"", answers=[code] * 9)) as place:
        assert refusal(place.url, tmp_path / "dogs") == f"data.archive={place.url}: {place.url} {message}"
    assert len(place.heads) == 1


def test_a_server_that_stays_busy_is_given_up(tmp_path: Path) -> None:
    with serving(Place(b"", answers=[503] * 9)) as place:
        assert "the server answered 503 Service Unavailable, 5 times" in refusal(place.url, tmp_path / "dogs")


def test_a_file_of_another_size_is_not_downloaded(tmp_path: Path) -> None:
    content = udacity()
    with serving(Place(content, breaks_after=[300_000, *[0] * 5])) as place:
        refusal(place.url, tmp_path / "dogs")
        place.content, place.etag = content[:-1], '"two"'
        accepted = f"has {len(content) - 1:,} bytes; accepted are {len(content):,} (data.archive_bytes)"
        message = refusal(place.url, tmp_path / "dogs", size=len(content))
        assert message == f"data.archive={place.url}: {place.url} {accepted}"
        place.content, place.etag = content, '"one"'
        fetch(place.url, tmp_path / "dogs", size=len(content))
        assert place.heads[-1]["Range"] == "bytes=300000-", "what was there is kept"


def test_without_room_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = udacity()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 2 * len(content) - 1))
    with serving(Place(content)) as place:
        assert refusal(place.url, tmp_path / "dogs") == (
            f"data.archive={place.url}: {tmp_path} has 0.0 GB free and 0.0 GB are needed; make room, or give "
            "data.root=PATH of a folder on another disk"
        )
        assert beside(tmp_path / "dogs") <= {".dogs.lock"}
        # As much as it takes: a byte more, and it is done.
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 2 * len(content)))
        fetch(place.url, tmp_path / "dogs")


def test_without_room_for_the_photos_the_download_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = zipped({"dogs/train/a/1.jpg": bytes(900_000), "dogs/noise": random.Random(0).randbytes(90_000)}, 8)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 900_000))
    with serving(Place(content)) as place:
        assert "has 0.0 GB free" in refusal(place.url, tmp_path / "dogs")
    monkeypatch.undo()
    assert (tmp_path / ".dogs.zip.part").read_bytes() == content
    fetch(place.url, tmp_path / "dogs")
    assert (tmp_path / "dogs" / "train" / "a" / "1.jpg").stat().st_size == 900_000


def test_a_disk_that_fills_while_it_unzips_leaves_the_download(tmp_path: Path) -> None:
    content = zipped({"train/a/1.jpg": bytes(4_000_000), "noise": random.Random(0).randbytes(90_000)}, 8)
    target = tmp_path / "dogs"
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n" + PROGRAM
    with serving(Place(content)) as place:
        command = [sys.executable, "-c", limited, place.url, str(target), "0"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert f"DataError: data.archive={place.url}: {target} cannot be written (File too large)" in result.stderr
    assert beside(target) - {".dogs.lock"} == {".dogs.zip.part", ".dogs.zip.part.json"}
    fetch(place.url, target)
    assert (target / "train" / "a" / "1.jpg").stat().st_size == 4_000_000


def test_a_folder_that_nobody_may_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with serving(Place(udacity())) as place:
        message = refusal(place.url, tmp_path / "file" / "dogs")
        assert message == (
            f"data.archive={place.url}: {tmp_path / 'file'} cannot be written (File exists); accepted is a data.root "
            "where you may write"
        )
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o555)
            if os.geteuid() == 0:  # root may write everywhere
                os.seteuid(65534)
            try:
                message = refusal(place.url, Path(folder) / "dogs")
            finally:
                os.seteuid(os.getuid())
    assert message.startswith(f"data.archive={place.url}: {folder}/.dogs.lock cannot be written (Permission denied)")
    assert not place.heads, "it was asked for before it was clear that it can be kept"


def entry(name: str, *, mode: int = 0, flags: int = 0) -> bytes:
    """A zip of one ordinary photo and one entry of this name and Unix mode."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as file:
        warnings.simplefilter("ignore")  # a name that is there twice
        file.writestr("dogs/train/a/1.jpg", b"photo")
        info = zipfile.ZipInfo("x" * len(name))
        info.filename = name
        info.create_system, info.external_attr = 3, mode << 16
        file.writestr(info, b"/etc/passwd")
    content = buffer.getvalue()
    if flags:
        at = content.rindex(b"PK\x01\x02") + 8
        content = content[:at] + struct.pack("<H", flags) + content[at + 2 :]
    return content


OUTSIDE = "has a path that could lead out of the folder"
HOSTILE = {
    "parent": (entry("../../.bashrc"), "'../../.bashrc' " + OUTSIDE),
    "parent inside": (entry("dogs/../../x.jpg"), "'dogs/../../x.jpg' " + OUTSIDE),
    "parent folder": (entry("dogs/../"), "'dogs/../' " + OUTSIDE),
    "absolute": (entry("/etc/cron.d/x"), "'/etc/cron.d/x' " + OUTSIDE),
    "drive": (entry("C:/x.jpg"), "'C:/x.jpg' " + OUTSIDE),
    "backslash": (entry("..\\x.jpg"), r"'..\\x.jpg' " + OUTSIDE),
    "nothing": (entry("./"), "'./' " + OUTSIDE),
    "control": (entry("dogs/\x1b[2J.jpg"), r"'dogs/\x1b[2J.jpg' has a control character in its name"),
    "null": (entry("dogs/a.jpg\x00.txt"), r"'dogs/a.jpg\x00.txt' has a control character in its name"),
    "link": (entry("dogs/l.jpg", mode=stat.S_IFLNK | 0o777), "'dogs/l.jpg' is a link or a device, not a plain file"),
    "device": (entry("dogs/d", mode=stat.S_IFCHR | 0o666), "'dogs/d' is a link or a device, not a plain file"),
    "pipe": (entry("dogs/p", mode=stat.S_IFIFO | 0o666), "'dogs/p' is a link or a device, not a plain file"),
    "hidden link": (entry("__MACOSX/l", mode=stat.S_IFLNK), "'__MACOSX/l' is a link or a device, not a plain file"),
    "encrypted": (entry("dogs/e.jpg", flags=1), "'dogs/e.jpg' is encrypted"),
    "twice": (entry("dogs/train/a/1.jpg"), "'dogs/train/a/1.jpg' is there twice"),
    "twice in other words": (entry("dogs/./train//a/1.jpg"), "'dogs/./train//a/1.jpg' is there twice"),
    "file and folder": (entry("dogs/train/a"), "'train/a' is a file and a folder"),
    "method": (zipped({"dogs/a.jpg": b"x"}, zipfile.ZIP_LZMA), "'dogs/a.jpg' is packed by method 14, not stored or"),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_zip_is_refused_and_writes_nothing(tmp_path: Path, fault: str) -> None:
    content, message = HOSTILE[fault]
    target = tmp_path / "deep" / "er" / "dogs"
    with serving(Place(content)) as place:
        refused = refusal(place.url, target)
    assert refused.startswith(f"data.archive={place.url}: the zip file is refused: its entry {message}")
    assert refused.endswith("; nothing was unpacked")
    assert {path.name for path in tmp_path.rglob("*")} <= {"deep", "er", ".dogs.lock"}


def claims(content: bytes, *, size: int | None = None, packed: int | None = None) -> bytes:
    """The zip with other sizes announced for its last entry, in the directory at its end and before the entry."""
    for signature, packed_at in ((b"PK\x01\x02", 20), (b"PK\x03\x04", 18)):
        at = content.rindex(signature) + packed_at
        old = struct.unpack("<II", content[at : at + 8])
        new = struct.pack("<II", old[0] if packed is None else packed, old[1] if size is None else size)
        content = content[:at] + new + content[at + 8 :]
    return content


PHOTO = {"dogs/train/a/1.jpg": random.Random(0).randbytes(5000)}
BOMB = zipped({"dogs/bomb.jpg": bytes(10_000_000)}, zipfile.ZIP_DEFLATED)
WHOLE = zipped(PHOTO)
DAMAGED = {
    "bomb": (
        BOMB,
        f"is refused: it unpacks to 10,000,000 bytes, a decompression bomb; accepted are up to {len(BOMB)}00",
    ),
    "bomb that hides": (claims(BOMB, size=500_000), "is damaged: 'dogs/bomb.jpg' cannot be unpacked (Bad CRC-32"),
    "overlap": (
        claims(WHOLE, packed=9_000),
        f"is refused: its entries overlap or are cut off: 9,000 bytes in a file of {len(WHOLE):,}",
    ),
    "too short": (claims(zipped(PHOTO, 8), size=5001), "is damaged: 'dogs/train/a/1.jpg' has not the size that it"),
    "bad crc": (
        WHOLE.replace(PHOTO["dogs/train/a/1.jpg"][:9], b"123456789"),
        "is damaged: 'dogs/train/a/1.jpg' cannot",
    ),
    "cut off": (WHOLE[:-300], "is damaged or no zip file (File is not a zip file)"),
    "no beginning": (WHOLE[3000:], "is refused: its entries overlap or are cut off: 5,000 bytes in a file of"),
    "a page": (b"<html>Log in to the network</html>", "is damaged or no zip file (File is not a zip file)"),
    "nothing": (b"", "is damaged or no zip file (File is not a zip file)"),
    "empty": (zipped({"dogs/": b"", "dogs/.DS_Store": b"x"}), "holds no files"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_zip_is_removed_so_that_the_next_call_gets_it_anew(tmp_path: Path, fault: str) -> None:
    content, message = DAMAGED[fault]
    message = message.replace(f"{len(BOMB)}00", f"{len(BOMB) * 100:,}")
    with serving(Place(content)) as place:
        refused = refusal(place.url, tmp_path / "dogs")
        assert refused.startswith(f"data.archive={place.url}: the zip file {message}")
        assert beside(tmp_path / "dogs") <= {".dogs.lock"}
        place.content = udacity()
        fetch(place.url, tmp_path / "dogs")
    assert_whole(tmp_path / "dogs", place.content)


def test_two_folders_or_a_split_at_the_top_stay(tmp_path: Path) -> None:
    for number, entries in enumerate(({"train/a/1.jpg": b"1", "valid/a/2.jpg": b"2"}, {"train/a/1.jpg": b"1"})):
        with serving(Place(zipped(entries))) as place:
            fetch(place.url, tmp_path / str(number))
        found = {p.relative_to(tmp_path / str(number)).as_posix() for p in (tmp_path / str(number)).rglob("*.jpg")}
        assert found == set(entries)


def test_modes_in_the_zip_are_not_taken_over(tmp_path: Path) -> None:
    with serving(Place(entry("dogs/train/a/2.jpg", mode=stat.S_IFREG | 0o6777))) as place:
        fetch(place.url, tmp_path / "dogs")
    assert not stat.S_IMODE((tmp_path / "dogs" / "train" / "a" / "2.jpg").stat().st_mode) & 0o7111


def test_the_bar_counts_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setattr(Console, "is_terminal", property(lambda self: True))
    monkeypatch.setenv("COLUMNS", "120")
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), progress_bar("downloading", 1_132_023_110, unit="bytes") as advance:
        advance(566_000_000)
    assert "0.6/1.1 GB" in shown.getvalue()
    assert "images" not in shown.getvalue()
