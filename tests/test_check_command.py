"""`python -m graft.data check`: what it finds, here and in S3, its exit codes, and what it reads."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from graft.data.__main__ import main
from graft.data.upload import upload
from graft.stores import LocalStore
from tests.composing import ROOT
from tests.pictures import draw_folder, spoil, truncate
from tests.s3server import faulty_proxy, new_bucket, running_server, use_server

LAST = "near-duplicates in two splits are looked for by a run: they take features"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "photos", classes=2, train=6, valid=3, test=2)


def check(place: Path | str, cache: Path, *more: str) -> int:
    return main(["check", str(place), f"--cache-dir={cache}", *more])


def spoil_some(photos: Path) -> None:
    truncate(photos / "train" / "class_0" / "000.jpg")
    truncate(photos / "train" / "class_1" / "000.jpg")
    spoil(photos / "test" / "class_1" / "000.jpg")
    shutil.copy(photos / "train" / "class_0" / "001.jpg", photos / "valid" / "class_0" / "copy.jpg")
    (photos / "valid" / "class_0" / "notes.txt").write_text("mine")


SPOILED = """\
ignored_files: 1 file ignored: no photo, or in no class folder, e.g. valid/class_0/notes.txt
truncated: train: 2 photos cut off at the end, the missing part is grey, e.g. train/class_0/000.jpg
not_an_image: test: 1 photo that cannot be decoded, left out
identical_across_splits: valid: 1 photo also in train, byte for byte, e.g. valid/class_0/copy.jpg = \
train/class_0/001.jpg
""".splitlines()


def few(lines: list[str]) -> list[str]:
    return [line for line in lines if line.isascii() and not line.startswith("few_photos")]


def test_a_sound_folder_is_counted_and_ends_with_0(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(photos, tmp_path / "cache") == 0
    out = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in out if line.startswith("│")]
    assert cells == [["train", "12", "2", "6", "6"], ["valid", "6", "2", "3", "3"], ["test", "4", "2", "", ""]]
    assert few(out) == ["nothing is wrong with the photos", LAST]


def test_a_warning_without_weight_ends_with_0(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(photos / "train" / "class_0" / "000.jpg", photos / "train" / "class_0" / "copy.jpg")
    assert check(photos, tmp_path / "cache") == 0
    assert few(capsys.readouterr().out.splitlines()) == ["identical_in_split: train: 1 superfluous copy", LAST]


def test_damage_and_leaks_are_named_and_end_with_1(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil_some(photos)
    assert check(photos, tmp_path / "cache") == 1
    assert few(capsys.readouterr().out.splitlines()) == [*SPOILED, LAST]
    assert check(photos, tmp_path / "cache", "--all") == 1
    named = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert named == [
        "  valid/class_0/notes.txt",
        "  train/class_0/000.jpg",
        "  train/class_1/000.jpg",
        "  valid/class_0/copy.jpg = train/class_0/001.jpg",
    ], "of the sealed split no name is told"


def test_the_second_time_no_photo_is_read(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graft.stores.SETTLED_S", -10.0)
    assert check(photos, tmp_path / "cache") == 0
    monkeypatch.setattr(LocalStore, "read", lambda *_: pytest.fail("a photo was read"))
    assert check(photos, tmp_path / "cache") == 0


def test_what_cannot_be_checked_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path / "nowhere", tmp_path / "cache") == 2
    assert capsys.readouterr().err.startswith(f"error: PATH={tmp_path}/nowhere is not there, or has no folders; ")
    (tmp_path / "file").write_text("?")
    draw_folder(tmp_path / "photos", classes=2, train=1, valid=1, test=0, size=32)
    assert check(tmp_path / "photos", tmp_path / "file") == 2
    assert capsys.readouterr().err.startswith(f"error: --cache-dir={tmp_path}/file cannot be used (File exists); ")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_server() as url:
        yield url


def test_in_s3_the_same_is_found_and_each_object_is_read_once(
    photos: Path, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil_some(photos)
    new_bucket(server, "check")
    with faulty_proxy(server) as proxy:
        use_server(monkeypatch, proxy.url)
        upload(photos, "s3://check/photos")
        for _ in range(2):
            assert check("s3://check/photos", tmp_path / "cache") == 1
            assert few(capsys.readouterr().out.splitlines()) == [*SPOILED, LAST]
        assert proxy.count("GET", ".jpg") + proxy.count("GET", ".png") == 23


def test_help_does_not_load_torch() -> None:
    code = "import sys; from graft.data.__main__ import main\ntry: main(['check', '--help'])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}print('torch' in sys.modules, 'numpy' in sys.modules)"],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "exit code is 1" in " ".join(done.stdout.split())
    assert done.stdout.splitlines()[-1] == "False False"
