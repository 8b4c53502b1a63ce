"""Paths by key, files that are whole or not there, and a folder that photos are read from."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from graft import stores
from graft.errors import ConfigError, DataError
from graft.storage import is_remote, local_path, write_atomic, write_text
from graft.stores import SETTLED_S, LocalStore


def test_a_local_path_is_taken_as_it_is() -> None:
    assert local_path("data/dogs", "data.root") == Path("data/dogs")
    assert local_path("/data/dogs", "data.root") == Path("/data/dogs")


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert local_path("~/dogs", "data.root") == Path("/home/someone/dogs")


def test_a_remote_path_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"^data.root=s3://bucket/dogs: accepted is a local path$"):
        local_path("s3://bucket/dogs", "data.root")


def test_writing_makes_the_folders_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.bin"
    write_atomic(path, b"long old content")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file.bin"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "name.txt", "Köter 犬\n")
    assert (tmp_path / "name.txt").read_bytes() == "Köter 犬\n".encode()


def test_a_name_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    write_text(tmp_path / "name.txt", "é " + os.fsdecode(b"caf\xe9.jpg\n"))
    assert (tmp_path / "name.txt").read_bytes() == b"\xc3\xa9 caf\\udce9.jpg\n"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file.bin"
    write_atomic(path, b"old")

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_the_new_content_is_on_the_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.bin"
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        steps.append(f"fsync of {os.fstat(handle).st_size} bytes")
        fsync(handle)

    def noted_replace(source: str, target: Path) -> None:
        steps.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_atomic(path, b"content")
    assert steps == ["fsync of 7 bytes", "replace"]


def test_a_url_is_remote_and_a_path_is_not() -> None:
    assert is_remote("s3://bucket/dogs")
    assert not any(is_remote(path) for path in ("dogs", "/data/dogs", "~/dogs", "a:b", "s3:/dogs"))


def place(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(file)


class TestListing:
    def test_files_come_sorted_by_their_whole_names_however_deep(self, tmp_path: Path) -> None:
        files = ["b/1", "a/10", "a/9", "a/deep/er/1", "a b/1", "A/1", "top", ".hidden/.1", "é/1"]
        place(tmp_path / "train", *files)
        place(tmp_path, "valid/x/1", "train2/y/1")
        (tmp_path / "train" / "empty").mkdir()
        listing = LocalStore(tmp_path).list("train")
        assert listing.names == tuple(sorted(files))
        assert listing.names.index("a b/1") < listing.names.index("a/10")
        assert (listing.tags.shape, listing.tags.dtype, listing.odd) == ((9,), np.dtype("S56"), ())

    def test_an_empty_folder_has_no_files(self, tmp_path: Path) -> None:
        listing = LocalStore(tmp_path).list("")
        assert (listing.names, listing.odd, listing.tags.shape) == ((), (), (0,))

    def test_a_folder_that_cannot_be_listed_is_named(self, tmp_path: Path) -> None:
        place(tmp_path, "file")
        with pytest.raises(DataError, match=rf"^{tmp_path}/absent cannot be listed: No such file"):
            LocalStore(tmp_path).list("absent")
        with pytest.raises(DataError, match=rf"^{tmp_path}/file cannot be listed: Not a directory"):
            LocalStore(tmp_path).list("file")
        (tmp_path / "round").symlink_to(tmp_path / "round")
        with pytest.raises(DataError, match=r"cannot be listed: Too many levels"):
            LocalStore(tmp_path).list("")
        with pytest.raises(DataError, match=r"cannot be listed: Too many levels"):
            LocalStore(tmp_path).folders()

    def test_links_and_what_is_no_file(self, tmp_path: Path) -> None:
        place(tmp_path, "far/1", "far/deep/2", "near/a/1")
        near = tmp_path / "near"
        (near / "linked").symlink_to(tmp_path / "far")
        (near / "a" / "file").symlink_to(tmp_path / "far" / "1")
        (near / "a" / "folder").symlink_to(tmp_path / "far")
        (near / "a" / "up").symlink_to(near)
        (near / "a" / "dead").symlink_to(near / "gone")
        (near / "dead").symlink_to(near / "gone")
        os.mkfifo(near / "a" / "pipe")
        listing = LocalStore(tmp_path).list("near")
        assert listing.names == ("a/1", "a/file", "linked/1", "linked/deep/2")
        assert listing.odd == ("a/dead", "a/folder", "a/pipe", "a/up", "dead")
        assert LocalStore(tmp_path).read("near/linked/deep/2") == b"far/deep/2"

    def test_odd_names(self, tmp_path: Path) -> None:
        names = ["a/new\nline.jpg", "a/ .jpg", "a/\U0001f415.jpg", os.fsdecode(b"a/caf\xe9.jpg"), "a/%41?*.jpg"]
        for name in names:
            place(tmp_path, "a/1")
            (tmp_path / name).write_bytes(os.fsencode(name))
        store = LocalStore(tmp_path)
        listing = store.list("")
        assert listing.names == tuple(sorted(["a/1", *names]))
        assert [store.read(name) for name in names] == [os.fsencode(name) for name in names]

    def test_folders_are_sorted_and_linked_ones_count(self, tmp_path: Path) -> None:
        place(tmp_path, "b/1", "a/1", ".c/1", "file")
        (tmp_path / "linked").symlink_to(tmp_path / "a")
        (tmp_path / "dead").symlink_to(tmp_path / "gone")
        store = LocalStore(tmp_path)
        assert store.folders() == [".c", "a", "b", "linked"]
        assert store.folders("a") == store.folders("absent") == store.folders("file") == []


class TestReading:
    def test_what_is_there_is_read_whichever_version_was_wanted(self, tmp_path: Path) -> None:
        place(tmp_path, "a/1")
        assert LocalStore(tmp_path).read("a/1") == LocalStore(tmp_path).read("a/1", b"another") == b"a/1"

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "round").symlink_to(tmp_path / "round")
        reasons = {"gone": "No such file", "folder": "Is a directory", "round": "Too many levels"}
        for name, reason in reasons.items():
            with pytest.raises(DataError, match=rf"^{tmp_path}/{name} cannot be read: {reason}"):
                LocalStore(tmp_path).read(name)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_file_that_may_not_be_read_is_named(self, tmp_path: Path) -> None:
        place(tmp_path, "1")
        (tmp_path / "1").chmod(0)
        with pytest.raises(DataError, match=r"/1 cannot be read: Permission denied"):
            LocalStore(tmp_path).read("1")

    def test_loader_workers_may_have_it(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        assert pickle.loads(pickle.dumps(store)) == store
        assert (store.location, store.readers) == (str(tmp_path), 1)


class TestTags:
    @pytest.fixture
    def photo(self, tmp_path: Path) -> Path:
        place(tmp_path, "a/1", "a/2")
        return tmp_path / "a" / "1"

    @pytest.fixture
    def later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is a minute later than the file system thinks."""
        now = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: now() + 60 * 10**9)

    @staticmethod
    def tags(photo: Path) -> dict[str, bytes]:
        listing = LocalStore(photo.parents[1]).list("")
        return dict(zip(listing.names, listing.tags.tolist(), strict=True))

    @pytest.mark.usefixtures("later")
    def test_an_unchanged_file_keeps_its_tag(self, photo: Path) -> None:
        first = self.tags(photo)
        assert len(set(first.values()) - {b""}) == 2
        photo.read_bytes()
        os.utime(photo.with_name("2"), ns=(0, photo.with_name("2").stat().st_mtime_ns))
        assert self.tags(photo)["a/1"] == first["a/1"]

    @pytest.mark.usefixtures("later")
    @pytest.mark.parametrize("change", ["content", "content of old date", "touch", "older date", "rename over", "size"])
    def test_a_changed_file_has_another_tag_and_its_neighbour_keeps_its_own(self, photo: Path, change: str) -> None:
        before, state = self.tags(photo), photo.stat()
        time.sleep(0.02)  # the clock of a file system ticks every few milliseconds
        if change.startswith("content"):
            photo.write_text("A/1")
        if change == "content of old date":  # as cp -p and rsync leave it
            os.utime(photo, ns=(state.st_atime_ns, state.st_mtime_ns))
        if change == "touch":
            photo.touch()
        if change == "older date":
            os.utime(photo, (1000, 1000))
        if change == "rename over":
            other = photo.with_name("new")
            other.write_text("A/1")
            os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
            other.rename(photo)
        if change == "size":
            with photo.open("a") as file:
                file.write("more")
        after = self.tags(photo)
        assert b"" not in after.values()
        assert after["a/1"] != before["a/1"]
        assert after["a/2"] == before["a/2"]

    @pytest.mark.usefixtures("later")
    def test_two_files_of_one_content_have_two_tags(self, photo: Path) -> None:
        photo.with_name("3").hardlink_to(photo)
        assert len(set(self.tags(photo).values())) == 3

    def test_a_file_that_was_just_written_has_none(self, photo: Path) -> None:
        assert set(self.tags(photo).values()) == {b""}
        os.utime(photo, (1000, 1000))  # it was changed now, whatever its date says
        assert self.tags(photo)["a/1"] == b""

    @pytest.mark.parametrize(("seconds", "tagged"), [(SETTLED_S - 0.1, False), (SETTLED_S + 0.1, True)])
    def test_it_has_one_two_seconds_later(
        self, photo: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, tagged: bool
    ) -> None:
        written = max(photo.stat().st_mtime_ns, photo.stat().st_ctime_ns)
        monkeypatch.setattr(time, "time_ns", lambda: written + int(seconds * 1e9))
        assert (self.tags(photo)["a/1"] != b"") == tagged

    @pytest.mark.usefixtures("later")
    def test_a_file_of_the_future_has_none(self, photo: Path) -> None:
        """The file server's clock is ahead of ours."""
        ahead = time.time() + 3600
        os.utime(photo, (ahead, ahead))
        assert (self.tags(photo)["a/1"], self.tags(photo)["a/2"] != b"") == (b"", True)

    def test_the_largest_numbers_that_a_file_system_may_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        known = {"st_mode": stat.S_IFREG, "st_size": 3, "st_mtime_ns": -1, "st_ctime_ns": -(10**18)}

        def entry(device: int, inode: int) -> Any:
            return SimpleNamespace(stat=lambda: SimpleNamespace(st_dev=device, st_ino=inode, **known))

        def walk(*_: str) -> Iterator[tuple[str, Any]]:
            numbers = ((2**64 - 1, 2**63), (2**64 - 1, 2**64 - 1), (2**63, 2**63), (2**63, 0))
            yield from (("same name", entry(*pair)) for pair in numbers)

        monkeypatch.setattr(stores, "_walk", walk)
        tags = LocalStore(Path("p")).list("").tags.tolist()
        assert len(set(tags) - {b""}) == 4

    @pytest.mark.usefixtures("later")
    def test_the_name_counts_where_a_mount_numbers_its_files_anew(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        same = {"st_mode": stat.S_IFREG, "st_size": 3, "st_mtime_ns": 10**18, "st_ctime_ns": 10**18}
        found = SimpleNamespace(st_dev=50, st_ino=7, **same)

        def tag(name: str) -> bytes:
            monkeypatch.setattr(stores, "_walk", lambda *_: iter([(name, SimpleNamespace(stat=lambda: found))]))
            return bytes(LocalStore(tmp_path).list("").tags[0])

        assert tag("a/1.jpg") == tag("a/1.jpg") != tag("a/2.jpg")
