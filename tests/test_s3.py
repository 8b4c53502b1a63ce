"""S3 over HTTP: listings, reads that survive a bad network, versions, the cache of objects, and every error's text."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graft.errors import DataError
from graft.s3 import S3Store, Version, fetch_file, listing
from graft.s3.cache import ObjectCache
from graft.s3.versions import read_tag
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

BUCKET = "photos"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_server() as url:
        yield url


@pytest.fixture(scope="module")
def objects(server: str) -> dict[str, bytes]:
    """Objects below s3://photos/set, by name; put there once."""
    new_bucket(server, BUCKET)
    rng = np.random.default_rng(0)
    names = [f"{split}/{kind}/{number}.jpg" for split in ("train", "valid") for kind in "ab" for number in range(8)]
    made = {name: rng.bytes(2000 + 10 * index) for index, name in enumerate([*names, "train/ä b/+%26.jpg"])}
    made["train/a-b/empty.jpg"] = b""
    s3 = client(server)
    for name, data in made.items():
        s3.put_object(Bucket=BUCKET, Key=f"set/{name}", Body=data)
    s3.put_object(Bucket=BUCKET, Key="set/train/", Body=b"")
    s3.put_object(Bucket=BUCKET, Key="settings.txt", Body=b"no part of set/")
    return made


@pytest.fixture
def proxy(server: str, objects: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with faulty_proxy(server) as proxy:
        use_server(monkeypatch, proxy.url)
        yield proxy


def read_all(store: S3Store, threads: int = 8) -> dict[str, bytes]:
    found = store.list("")
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(found.names, pool.map(store.read, found.names, map(bytes, found.tags)), strict=True))


def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow each other at once: how long they wait is botocore's own test."""
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0.01)


def test_listing_is_that_of_the_folder(proxy: FaultyProxy, objects: dict[str, bytes]) -> None:
    found = S3Store("s3://photos/set/").list("")
    assert found.names == tuple(sorted(objects))
    versions = [read_tag(bytes(tag)) for tag in found.tags]
    assert versions == [Version(hashlib.md5(objects[name]).hexdigest(), len(objects[name])) for name in found.names]
    assert S3Store("s3://photos").list("set/valid").names == S3Store("s3://photos/set").list("valid").names
    assert S3Store("s3://photos/set").list("valid").names[:2] == ("a/0.jpg", "a/1.jpg")


def test_folders_are_listed_without_their_objects(proxy: FaultyProxy) -> None:
    store = S3Store("s3://photos/set")
    assert store.folders() == ["train", "valid"]
    assert store.folders("train") == ["a", "a-b", "b", "ä b"]
    assert store.folders("nowhere") == []
    assert proxy.count("GET") == 3


@pytest.mark.parametrize("flat", [False, True])
def test_many_objects_are_listed_folder_by_folder(
    proxy: FaultyProxy, objects: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, flat: bool
) -> None:
    whole = S3Store("s3://photos/set").list("train" if flat else "")
    monkeypatch.setattr(listing, "_PAGES_IN_A_ROW", 1)
    monkeypatch.setattr(listing, "_pages", partial(listing._pages, PaginationConfig={"PageSize": 5}))
    proxy.reset()
    found = S3Store("s3://photos/set").list("train" if flat else "")
    assert found.names == whole.names
    assert found.tags.tolist() == whole.tags.tolist()
    # The folder in which the first five ended goes on after them, and is not listed from its start again.
    assert any("start-after=" in path for _, path in proxy.requests)


def test_tags_tell_versions_apart() -> None:
    md5 = "0" * 31 + "1"
    assert Version(md5, 0x300).tag("anywhere") == f"{md5}|300".encode() == Version(md5, 0x300).tag("elsewhere")
    parts = Version(f"{md5}-10000", 5 * 2**40)
    assert parts.md5 is None
    assert len(parts.tag("s3/a")) == 56
    assert parts.tag("s3/a") != parts.tag("s3/b")
    assert read_tag(bytes(np.array([parts.tag("s3/a")], "S56")[0])) == parts
    assert [Version(etag, 1).tag("") for etag in ('W/"1"', "x" * 60, "", "a|b|c", "é")] == [b""] * 5
    assert read_tag(b"") is None


def test_each_object_is_one_request(proxy: FaultyProxy, objects: dict[str, bytes]) -> None:
    store = S3Store("s3://photos/set")
    assert read_all(store) == objects
    reads = [(method, path) for method, path in proxy.requests.elements() if ".jpg" in path]
    assert len(reads) == len(set(reads)) == len(objects) - 1  # an empty one needs none
    assert {method for method, _ in reads} == {"GET"}
    assert store.read("train/a/0.jpg") == objects["train/a/0.jpg"]


FAULTS = {
    "drops": Faults(every=5, kind="drop"),
    "cuts": Faults(every=5, kind="cut", methods=("GET",)),
    "shortens": Faults(every=5, kind="shorten", methods=("GET",)),
    "spoils": Faults(every=5, kind="spoil", methods=("GET",)),
    "slow": Faults(delay=0.05),
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_a_bad_network_gives_the_right_bytes(
    proxy: FaultyProxy, objects: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, faults: Faults
) -> None:
    no_pauses(monkeypatch)
    store = S3Store("s3://photos/set")
    found = store.list("")
    proxy.reset(faults)
    # One after the other no object is hit several times in a row.
    with ThreadPoolExecutor(1 if faults.kind in ("shorten", "spoil") else 8) as pool:
        data = list(pool.map(store.read, found.names, map(bytes, found.tags)))
    assert dict(zip(found.names, data, strict=True)) == objects
    assert proxy.count("GET") >= len(objects) - 1 + (len(objects) // 6 if faults.every else 0)


def test_a_listing_survives_a_bad_network(
    proxy: FaultyProxy, objects: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_pauses(monkeypatch)
    proxy.reset(Faults(every=2, kind="drop"))
    assert len(S3Store("s3://photos/set").list("").names) == len(objects)
    assert S3Store("s3://photos/set").folders() == ["train", "valid"]


def test_32_readers_wait_while_s3_is_busy(proxy: FaultyProxy, objects: dict[str, bytes]) -> None:
    """The newer retry modes of botocore give up here: all reads of a client share 500 points."""
    store = S3Store("s3://photos/set")
    found = store.list("")
    proxy.busy(0.6)
    with ThreadPoolExecutor(store.readers) as pool:
        data = list(pool.map(store.read, found.names, map(bytes, found.tags)))
    assert dict(zip(found.names, data, strict=True)) == objects
    assert proxy.count("GET") > 1.2 * len(objects)


def test_a_read_that_always_arrives_damaged_is_refused(proxy: FaultyProxy) -> None:
    store = S3Store("s3://photos/set")
    found = store.list("train/a")
    for kind in ("spoil", "shorten"):
        proxy.reset(Faults(every=1, kind=kind, methods=("GET",)))
        with pytest.raises(DataError) as caught:
            store.read("train/a/0.jpg", bytes(found.tags[0]))
        assert str(caught.value) == (
            "s3://photos/set/train/a/0.jpg arrived damaged 5 times (its size or MD5 is not what S3 says); check the "
            "network and any proxy in between, run again"
        )
        assert proxy.count("GET") == 5


def test_a_read_that_always_breaks_off_is_refused(proxy: FaultyProxy) -> None:
    store = S3Store("s3://photos/set")
    tag = bytes(store.list("train/a").tags[0])
    proxy.reset(Faults(every=1, kind="cut", methods=("GET",)))
    with pytest.raises(DataError, match=r"^s3://photos/set/train/a/0.jpg: every attempt to read it broke off \("):
        store.read("train/a/0.jpg", tag)


def test_an_object_that_changed_or_vanished_is_refused(server: str, proxy: FaultyProxy) -> None:
    s3 = client(server)
    for name in ("old.jpg", "gone.jpg"):
        s3.put_object(Bucket=BUCKET, Key=f"moving/{name}", Body=b"before")
    store = S3Store("s3://photos/moving")
    tags = dict(zip(*(lambda found: (found.names, found.tags.tolist()))(store.list("")), strict=True))
    s3.put_object(Bucket=BUCKET, Key="moving/old.jpg", Body=b"behind")
    s3.delete_object(Bucket=BUCKET, Key="moving/gone.jpg")
    with pytest.raises(DataError) as caught:
        store.read("old.jpg", tags["old.jpg"])
    assert str(caught.value) == (
        "s3://photos/moving/old.jpg changed while it was read (it is not what was listed any more); run again"
    )
    with pytest.raises(DataError, match=r"^s3://photos/moving/gone.jpg: not there, or not any more; "):
        store.read("gone.jpg", tags["gone.jpg"])
    assert store.read("old.jpg") == b"behind"


def test_an_encrypted_object_is_not_judged_by_its_etag(
    server: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SSE-KMS the ETag looks like an MD5 and is none; moto makes it one, so the tag is made up here."""
    client(server).put_object(Bucket=BUCKET, Key="sealed/a.jpg", Body=b"content", ServerSideEncryption="aws:kms")
    store = S3Store("s3://photos/sealed")
    monkeypatch.setattr("graft.s3.store._md5", lambda data: "0" * 32)
    tag = bytes(store.list("").tags[0])
    assert [store.read("a.jpg", tag), store.read("a.jpg", tag)] == [b"content"] * 2
    assert proxy.count("HEAD", "a.jpg") == 1


def test_a_store_goes_into_other_processes(proxy: FaultyProxy, objects: dict[str, bytes]) -> None:
    store = S3Store("s3://photos/set")
    assert store.read("train/a/0.jpg") == objects["train/a/0.jpg"]
    assert pickle.loads(pickle.dumps(store)).read("train/a/1.jpg") == objects["train/a/1.jpg"]
    if sys.version_info >= (3, 12):
        pytest.skip("a process with threads is not forked without a warning")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(store.read, ("train/a/2.jpg",)).get(20) == objects["train/a/2.jpg"]


def test_kept_objects_need_no_request(proxy: FaultyProxy, objects: dict[str, bytes], tmp_path: Path) -> None:
    assert read_all(S3Store("s3://photos/set", cache=tmp_path, max_bytes=1e6)) == objects
    again = S3Store("s3://photos/set", cache=tmp_path, max_bytes=1e6)
    found = again.list("")
    proxy.reset()
    assert [again.read(n, bytes(tag)) for n, tag in zip(found.names, found.tags, strict=True)] == [
        objects[name] for name in found.names
    ]
    assert proxy.requests == {}


def test_a_damaged_kept_object_is_fetched_again(proxy: FaultyProxy, objects: dict[str, bytes], tmp_path: Path) -> None:
    store = S3Store("s3://photos/set", cache=tmp_path, max_bytes=1e6)
    tag = bytes(store.list("train/a").tags[0])
    store.read("train/a/0.jpg", tag)
    [kept] = [path for path in tmp_path.rglob("*") if path.is_file()]
    for damage in (b"", bytes(kept.stat().st_size), kept.read_bytes()[:-1]):
        kept.write_bytes(damage)
        proxy.reset()
        assert store.read("train/a/0.jpg", tag) == objects["train/a/0.jpg"]
        assert proxy.count("GET") == 1


def test_another_version_is_another_kept_object(server: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    for body in (b"first", b"other"):
        client(server).put_object(Bucket=BUCKET, Key="kept/a.jpg", Body=body)
        store = S3Store("s3://photos/kept", cache=tmp_path, max_bytes=1e6)
        assert store.read("a.jpg", bytes(store.list("").tags[0])) == body


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def fill(cache: ObjectCache, numbers: range) -> list[int]:
    """Put objects of 1,000 bytes; which of them are found afterwards."""
    for number in numbers:
        cache.put("b", str(number), b"tag", bytes(996))
    return [number for number in numbers if cache.get("b", str(number), b"tag", 996) is not None]


def test_the_cache_keeps_to_its_limit_and_does_not_thrash(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, 50_000)
    first = fill(cache, range(100))
    assert 47 <= len(first) <= 50
    assert first == list(range(len(first)))
    assert size_of(tmp_path) <= 50_000
    assert fill(cache, range(100)) == first  # a second round finds what the first one kept


def test_a_later_run_replaces_what_was_unused_the_longest(tmp_path: Path) -> None:
    fill(ObjectCache(tmp_path, 50_000), range(45))
    past = time.time() - 1000
    for age, path in enumerate(sorted((p for p in tmp_path.rglob("*") if p.is_file()), key=lambda p: p.name)):
        os.utime(path, (past + age, past + age))
    later = ObjectCache(tmp_path, 50_000)
    used = [number for number in range(20) if later.get("b", str(number), b"tag", 996) is not None]
    assert used == list(range(20))
    assert fill(later, range(100, 120)) == list(range(100, 120))
    assert [later.get("b", str(number), b"tag", 996) is not None for number in used] == [True] * 20
    assert size_of(tmp_path) <= 50_000


def test_four_processes_share_the_limit(tmp_path: Path) -> None:
    caches = [ObjectCache(tmp_path, 50_000) for _ in range(4)]
    for number in range(100):
        caches[number % 4].put("b", str(number), b"tag", bytes(996))
    assert 40_000 <= size_of(tmp_path) <= 50_000


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: objects cannot be kept there: Not a directory$"):
        ObjectCache(tmp_path / "file", 1e6).put("b", "k", b"tag", b"data")


def test_a_file_is_fetched_once_per_version(server: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    s3, data = client(server), np.random.default_rng(1).bytes(9_000_000)
    s3.put_object(Bucket=BUCKET, Key="weights/net.pth", Body=data)
    proxy.reset(Faults(every=3, kind="cut", methods=("GET",)))
    path = fetch_file("s3://photos/weights/net.pth", tmp_path / "kept")
    assert path == tmp_path / "kept" / f"{hashlib.md5(data).hexdigest()}-net.pth"
    assert path.read_bytes() == data
    proxy.reset()
    assert fetch_file("s3://photos/weights/net.pth", tmp_path / "kept") == path
    assert proxy.count("GET") == 0
    s3.put_object(Bucket=BUCKET, Key="weights/net.pth", Body=b"new")
    assert fetch_file("s3://photos/weights/net.pth", tmp_path / "kept").read_bytes() == b"new"
    assert sorted(entry.name[-8:] for entry in (tmp_path / "kept").iterdir()) == ["-net.pth"] * 2


def test_a_damaged_file_is_refused_and_not_left(server: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    client(server).put_object(Bucket=BUCKET, Key="weights/w.pth", Body=b"x" * 1000)
    proxy.reset(Faults(every=1, kind="spoil", methods=("GET",)))
    with pytest.raises(DataError, match=r"^s3://photos/weights/w.pth arrived damaged "):
        fetch_file("s3://photos/weights/w.pth", tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match=r"^s3://photos/weights/no.pth: not there"):
        fetch_file("s3://photos/weights/no.pth", tmp_path)
    with pytest.raises(DataError, match=r"^s3://photos names no object; accepted is s3://BUCKET/KEY$"):
        fetch_file("s3://photos", tmp_path)


@pytest.mark.parametrize("location", ["s3:///x", "s3://", "s3:/a/b", "s3://a", "s3://bad bucket/x", "gs://bucket/x"])
def test_a_malformed_location_is_refused(location: str) -> None:
    with pytest.raises(DataError) as caught:
        S3Store(location)
    assert str(caught.value) == f"{location} is no place in S3; accepted is s3://BUCKET or s3://BUCKET/PREFIX"


def message(location: str) -> str:
    with pytest.raises(DataError) as caught:
        S3Store(location).list("")
    return str(caught.value)


def test_missing_places_are_named(proxy: FaultyProxy) -> None:
    assert message("s3://photos/nothing/here") == (
        "s3://photos/nothing/here: nothing is below it; check the prefix (`aws s3 ls` shows them)"
    )
    assert message("s3://no-such-bucket/x") == (
        "s3://no-such-bucket/x: there is no such bucket; check the name, or make it with `aws s3 mb`"
    )


def test_no_credentials_are_named(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_account(monkeypatch)
    assert message("s3://photos/set") == (
        "s3://photos/set: no usable credentials (Unable to locate credentials); set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or name a profile of ~/.aws in AWS_PROFILE (`aws configure` makes one)"
    )
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert "no usable credentials (The config profile (work) could not be found); set AWS_ACC" in message("s3://photos")


def test_an_endpoint_where_nobody_listens_is_named_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    use_server(monkeypatch, "http://127.0.0.1:9")
    start = time.monotonic()
    assert message("s3://photos/set") == (
        's3://photos/set: cannot be reached (Could not connect to the endpoint URL: "http://127.0.0.1:9/photos"); '
        "check the network, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL"
    )
    assert time.monotonic() - start < 5
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    assert message("s3://photos/set") == (
        "s3://photos/set: Invalid endpoint: nonsense; check AWS_ENDPOINT_URL and AWS_MAX_ATTEMPTS"
    )


def test_s3_that_stays_busy_is_named(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    no_pauses(monkeypatch)
    proxy.busy(60)
    assert message("s3://photos/set") == (
        "s3://photos/set: S3 answered SlowDown to every attempt; run again later: what arrived is kept"
    )


REFUSALS = {
    "AccessDenied": "access denied; the account in use needs s3:ListBucket and s3:GetObject there",
    "ExpiredToken": "the credentials have expired; renew them",
    "InvalidAccessKeyId": "no usable credentials (InvalidAccessKeyId); set",
    "AuthorizationHeaderMalformed": "the bucket lies in another region (AuthorizationHeaderMalformed); set",
    "RequestTimeTooSkewed": "this machine's clock is more than 15 minutes off; set it",
    "MalformedNonsense": "S3 refused (An error occurred (MalformedNonsense)",
}


@pytest.mark.parametrize("code", REFUSALS)
def test_refusals_say_what_to_do(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    def refuse(*_: Any) -> tuple[int, list[tuple[str, str]], bytes]:
        return 400, [], f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()

    monkeypatch.setattr("tests.s3server._Handler._forward", refuse)
    assert message("s3://photos/set").startswith(f"s3://photos/set: {REFUSALS[code]}")


def test_boto3_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert message("s3://photos") == "s3://photos needs boto3, which is not installed; pip install 'graft[aws]'"
