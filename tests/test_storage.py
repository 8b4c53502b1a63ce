"""Paths by key, and files that are whole or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from graft.errors import ConfigError
from graft.storage import local_path, write_atomic, write_text


def test_a_local_path_is_taken_as_it_is() -> None:
    assert local_path("data/dogs", "data.root") == Path("data/dogs")
    assert local_path("/data/dogs", "data.root") == Path("/data/dogs")


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert local_path("~/dogs", "data.root") == Path("/home/someone/dogs")


def test_a_remote_path_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"^data.root=s3://bucket/dogs: accepted is a local path; s3:// comes with"):
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
        raise OSError("the disk is full")

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
