"""Splits found below a root, and the content hashes of their photos."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest

from graft.data.folder import Folder, Split, digest_files, fingerprint, scan
from graft.errors import DataError
from tests.pictures import draw_folder

THREE = ("train/a/1.jpg", "train/b/1.jpg", "valid/a/1.jpg")


def place(root: Path, *files: str) -> Path:
    """Files whose content is their own name: scanning reads none."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file)
    return root


def scanned(root: Path, *files: str) -> Folder:
    return scan(place(root, *files))


def test_a_drawn_folder_is_found_whole(tmp_path: Path) -> None:
    folder = scan(draw_folder(tmp_path, classes=2, train=3, valid=2, test=1))
    assert folder.class_names == ("class_0", "class_1")
    assert [(split.name, len(split)) for split in folder.splits()] == [("train", 6), ("valid", 4), ("test", 2)]
    assert folder.train.files[:3] == ("class_0/000.jpg", "class_0/001.jpg", "class_0/002.png")
    assert folder.train.labels().tolist() == [0, 0, 0, 1, 1, 1]
    assert folder.train.labels().dtype == np.int64
    assert all(path.is_file() for split in folder.splits() for path in split.paths())
    assert folder.ignored == ()


def test_classes_are_the_sorted_union_over_the_splits(tmp_path: Path) -> None:
    folder = scanned(tmp_path, "train/b/1.jpg", "train/C/1.jpg", "valid/a/1.jpg", "test/d/1.jpg", "test/b/1.jpg")
    assert folder.class_names == ("C", "a", "b", "d")
    assert folder.train.class_names == folder.valid.class_names == folder.class_names
    assert folder.train.files == ("C/1.jpg", "b/1.jpg")
    assert folder.train.labels().tolist() == [0, 2]
    assert folder.valid.labels().tolist() == [1]


def test_an_empty_class_folder_is_a_class(tmp_path: Path) -> None:
    (tmp_path / "valid" / "empty").mkdir(parents=True)
    assert scanned(tmp_path, *THREE).class_names == ("a", "b", "empty")


def test_val_is_valid(tmp_path: Path) -> None:
    folder = scanned(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg")
    assert (folder.valid.name, folder.valid.directory) == ("valid", tmp_path / "val")


def test_valid_and_val_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has both valid/ and val/; accepted is one of them"):
        scanned(tmp_path, *THREE, "val/a/1.jpg")


def test_without_test_there_are_two_splits(tmp_path: Path) -> None:
    folder = scanned(tmp_path, *THREE)
    assert folder.test is None
    assert [split.name for split in folder.splits()] == ["train", "valid"]


def test_a_missing_root_gives_the_hint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.root=.*nowhere is not there; fetch it from the shelf$"):
        scan(tmp_path / "nowhere", "fetch it from the shelf")
    with pytest.raises(DataError, match=r"nowhere is not there; give data.root=PATH of a folder$"):
        scan(tmp_path / "nowhere")


@pytest.mark.parametrize("absent", ["train", "valid"])
def test_a_missing_split_names_what_makes_it(tmp_path: Path, absent: str) -> None:
    files = [file for file in THREE if not file.startswith(absent)]
    with pytest.raises(DataError, match=rf"has no {absent}/ folder; .*`python -m graft.data split SRC DST`"):
        scanned(tmp_path, *files)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_split_without_photos_in_class_folders_is_refused(tmp_path: Path, split: str) -> None:
    files = [file for file in THREE if not file.startswith(split)]
    with pytest.raises(DataError, match=rf"/{split} has no photos; accepted are .bmp, .* in class folders"):
        scanned(tmp_path, *files, f"{split}/unsorted.jpg", f"{split}/a/notes.txt")


def test_hidden_names_are_passed_over_and_other_files_are_named(tmp_path: Path) -> None:
    folder = scanned(
        tmp_path,
        *THREE,
        "train/.cache/1.jpg",
        "train/__MACOSX/1.jpg",
        "train/a/.1.jpg",
        "train/a/Thumbs.db",
        "train/a/notes.txt",
        "train/a/2.JPEG",
        "valid/a/labels.csv",
    )
    assert folder.class_names == ("a", "b")
    assert folder.train.files == ("a/1.jpg", "a/2.JPEG", "b/1.jpg")
    assert folder.ignored == ("a/notes.txt", "a/labels.csv")


def test_photos_beside_the_class_folders_are_ignored_by_name(tmp_path: Path) -> None:
    folder = scanned(tmp_path, *THREE, "train/IMG.jpg", "train/.hidden.jpg", "train/notes.txt", "train/a/notes.txt")
    (tmp_path / "train" / "dead.jpg").symlink_to(tmp_path / "gone.jpg")
    assert folder.train.files == ("a/1.jpg", "b/1.jpg")
    assert folder.ignored == ("IMG.jpg", "a/notes.txt")


def test_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^data\.root={tmp_path}: one class \(cat\); accepted is at least two$"):
        scanned(tmp_path, "train/cat/1.jpg", "valid/cat/1.jpg", "test/cat/1.jpg")
    assert scanned(tmp_path, "valid/dog/1.jpg").class_names == ("cat", "dog")


def test_photos_below_a_class_folder_belong_to_the_class(tmp_path: Path) -> None:
    folder = scanned(tmp_path, *THREE, "train/a/2020/may/3.png", "train/a/2019/4.png")
    assert folder.train.files == ("a/1.jpg", "a/2019/4.png", "a/2020/may/3.png", "b/1.jpg")
    assert folder.train.labels().tolist() == [0, 0, 0, 1]


def test_a_linked_class_folder_is_followed_and_a_circle_is_not(tmp_path: Path) -> None:
    place(tmp_path, *THREE, "elsewhere/1.jpg")
    (tmp_path / "train" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train" / "round").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "a" / "up").symlink_to(tmp_path / "train")
    folder = scan(tmp_path)
    assert folder.class_names == ("a", "b", "linked", "round")
    assert [file for file in folder.train.files if file.startswith(("a/", "linked/"))] == ["a/1.jpg", "linked/1.jpg"]
    assert "a/up" in folder.ignored


def test_a_linked_photo_counts_and_a_dead_link_is_no_photo(tmp_path: Path) -> None:
    place(tmp_path, *THREE, "elsewhere/1.jpg")
    (tmp_path / "train" / "a" / "2.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    (tmp_path / "train" / "a" / "dead.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "train" / "a" / "folder.jpg").symlink_to(tmp_path / "elsewhere")
    folder = scan(tmp_path)
    assert folder.train.files == ("a/1.jpg", "a/2.jpg", "b/1.jpg")
    assert folder.ignored == ("a/dead.jpg", "a/folder.jpg")


def test_the_labels_of_test_are_sealed_until_it_is_opened(tmp_path: Path) -> None:
    test = scanned(tmp_path, *THREE, "test/b/1.jpg", "test/a/1.jpg").test
    assert test is not None
    with pytest.raises(DataError, match=r"the labels of test are sealed; only evaluate.py opens them"):
        test.labels()
    with pytest.raises(DataError, match="sealed"):
        test.keep(np.array([True, True])).labels()
    assert test.opened().labels().tolist() == [0, 1]
    assert test.sealed  # opening one copy opens no other


def test_keep_leaves_the_order() -> None:
    split = Split("train", Path("train"), ("a/1.jpg", "a/2.jpg", "b/1.jpg"), ("a", "b"))
    kept = split.keep(np.array([True, False, True]))
    assert kept.files == ("a/1.jpg", "b/1.jpg")
    assert kept.labels().tolist() == [0, 1]


def test_digests_are_blake2b_of_the_bytes_in_the_order_of_the_paths(tmp_path: Path) -> None:
    # 600 files are three portions, also when no thread was asked for.
    paths = [tmp_path / f"{number}.jpg" for number in range(600)]
    for number, path in enumerate(paths):
        path.write_bytes(b"%d" % (number % 500))
    expected = [hashlib.blake2b(path.read_bytes(), digest_size=16).digest() for path in paths]
    for workers in (0, 3):
        found = digest_files(paths, workers)
        assert found.dtype == np.dtype("S16")
        assert [bytes(one).ljust(16, b"\0") for one in found] == expected
    assert len(set(found.tolist())) == 500


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg cannot be read: No such file"):
        digest_files([tmp_path / "gone.jpg"], 1)


def test_a_fingerprint_is_of_a_set_of_photos(tmp_path: Path) -> None:
    draw_folder(tmp_path, classes=2, train=3, valid=1, test=0)
    paths = scan(tmp_path).train.paths()
    known = fingerprint(digest_files(paths, 2))
    assert len(known) == 32
    shuffled = random.Random(0).sample(paths, len(paths))
    assert fingerprint(digest_files(shuffled, 2)) == known
    moved = paths[0].rename(tmp_path / "other name.jpg")
    assert fingerprint(digest_files([*paths[1:], moved], 2)) == known
    moved.write_bytes(moved.read_bytes() + b"\0")
    assert fingerprint(digest_files([*paths[1:], moved], 2)) != known
    assert fingerprint(digest_files(paths[1:], 2)) != known
