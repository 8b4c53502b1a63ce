"""Splits found in a store, and the photos of several of them as one list."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from graft import stores as stores_module
from graft.data.folder import Folder, PhotoList, Split, class_names, scan
from graft.errors import DataError
from graft.stores import Listing, LocalStore
from tests.pictures import draw_folder

THREE = ("train/a/1.jpg", "train/b/1.jpg", "valid/a/1.jpg")


def place(root: Path, *files: str) -> Path:
    """Files whose content is their own name: scanning reads none."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file)
    return root


class LateStore(LocalStore):
    """A folder that is looked at a minute from now, so that no file counts as just written."""

    def list(self, folder: str) -> Listing:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stores_module, "SETTLED_S", -60)
            return super().list(folder)


def scanned(root: Path, *files: str) -> Folder:
    return scan(LocalStore(place(root, *files)))


def test_a_drawn_folder_is_found_whole(tmp_path: Path) -> None:
    folder = scan(LocalStore(draw_folder(tmp_path, classes=2, train=3, valid=2, test=1)))
    assert folder.class_names == ("class_0", "class_1")
    assert [(split.name, len(split)) for split in folder.splits()] == [("train", 6), ("valid", 4), ("test", 2)]
    assert folder.train.files[:3] == ("class_0/000.jpg", "class_0/001.jpg", "class_0/002.png")
    assert folder.train.labels().tolist() == [0, 0, 0, 1, 1, 1]
    assert folder.train.labels().dtype == np.int64
    for split in folder.splits():
        for index, file in enumerate(split.files):
            path = tmp_path / split.name / file
            assert (split.path(index), split.read(index)) == (str(path), path.read_bytes())
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
    assert (folder.valid.name, folder.valid.folder, folder.valid.location) == ("valid", "val", f"{tmp_path}/val")
    assert (folder.valid.path(0), folder.valid.read(0)) == (f"{tmp_path}/val/a/1.jpg", b"val/a/1.jpg")


def test_valid_and_val_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has both valid/ and val/; accepted is one of them"):
        scanned(tmp_path, *THREE, "val/a/1.jpg")


def test_without_test_there_are_two_splits(tmp_path: Path) -> None:
    folder = scanned(tmp_path, *THREE)
    assert folder.test is None
    assert [split.name for split in folder.splits()] == ["train", "valid"]


def test_a_missing_root_gives_the_hint(tmp_path: Path) -> None:
    nowhere = LocalStore(tmp_path / "nowhere")
    for look in (scan, class_names):
        with pytest.raises(
            DataError, match=r"data.root=.*nowhere is not there, or has no folders; fetch it from the shelf$"
        ):
            look(nowhere, "fetch it from the shelf")
        with pytest.raises(
            DataError, match=r"nowhere is not there, or has no folders; accepted is a folder with train/.*in each$"
        ):
            look(nowhere)


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
    assert folder.ignored == ("train/a/notes.txt", "valid/a/labels.csv")


def test_photos_beside_the_class_folders_are_ignored_by_name(tmp_path: Path) -> None:
    place(tmp_path, *THREE, "train/IMG.jpg", "train/.hidden.jpg", "train/notes.txt", "train/a/notes.txt")
    for name in ("dead.jpg", "dead", ".dead.jpg"):
        (tmp_path / "train" / name).symlink_to(tmp_path / "gone.jpg")
    folder = scan(LocalStore(tmp_path))
    assert folder.train.files == ("a/1.jpg", "b/1.jpg")
    assert folder.ignored == ("train/IMG.jpg", "train/a/notes.txt", "train/dead.jpg")


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
    folder = scan(LocalStore(tmp_path))
    assert folder.class_names == ("a", "b", "linked", "round")
    assert [file for file in folder.train.files if file.startswith(("a/", "linked/"))] == ["a/1.jpg", "linked/1.jpg"]
    assert "train/a/up" in folder.ignored


def test_a_linked_photo_counts_and_a_dead_link_is_no_photo(tmp_path: Path) -> None:
    place(tmp_path, *THREE, "elsewhere/1.jpg")
    (tmp_path / "train" / "a" / "2.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    (tmp_path / "train" / "a" / "dead.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "train" / "a" / "folder.jpg").symlink_to(tmp_path / "elsewhere")
    folder = scan(LocalStore(tmp_path))
    assert folder.train.files == ("a/1.jpg", "a/2.jpg", "b/1.jpg")
    assert folder.ignored == ("train/a/dead.jpg", "train/a/folder.jpg")


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
    tags = np.array([b"one", b"two", b"three"], "S56")
    split = Split("train", LocalStore(Path("p")), "train", ("a/1.jpg", "a/2.jpg", "b/1.jpg"), ("a", "b"), tags)
    assert split.labels().tolist() == [0, 0, 1]
    kept = split.keep(np.array([True, False, True]))
    assert kept.files == ("a/1.jpg", "b/1.jpg")
    assert kept.labels().tolist() == [0, 1]
    assert kept.tags is not None
    assert kept.tags.tolist() == [b"one", b"three"]
    assert split.keep(np.ones(3, bool)).files == split.files


def test_a_split_reads_the_version_that_was_listed() -> None:
    asked: list[tuple[str, bytes]] = []

    class Noting(LocalStore):
        def read(self, name: str, tag: bytes = b"") -> bytes:
            asked.append((name, tag))
            return b""

    split = Split(
        "test", Noting(Path("p")), "test", ("a/1.jpg", "b/2.jpg"), ("a", "b"), np.array([b"v1", b"v2"], "S56")
    )
    split.read(1)
    Split("test", Noting(Path("p")), "test", ("a/1.jpg",), ("a",)).read(0)
    assert asked == [("test/b/2.jpg", b"v2"), ("test/a/1.jpg", b"")]


def test_classes_come_in_the_order_of_their_names_whatever_sorts_first_as_a_path(tmp_path: Path) -> None:
    """As whole strings "a b/1.jpg" and "a!/1.jpg" come before "a/1.jpg", for "/" sorts after " " and "!"."""
    files = [f"{name}/{number}" for name in ("b", "a b", "a", "a!", "B") for number in ("2.jpg", "x/1.jpg", "10.jpg")]
    folder = scanned(tmp_path, *(f"train/{file}" for file in files), "valid/a b/1.jpg", "valid/a/1.jpg")
    assert folder.class_names == ("B", "a", "a b", "a!", "b")
    inside = ("10.jpg", "2.jpg", "x/1.jpg")
    assert folder.train.files == tuple(f"{name}/{file}" for name in folder.class_names for file in inside)
    assert folder.train.labels().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert (folder.valid.files, folder.valid.labels().tolist()) == (("a/1.jpg", "a b/1.jpg"), [1, 2])


def test_every_photo_has_its_own_tag(tmp_path: Path) -> None:
    place(tmp_path, *THREE, "train/a b/1.jpg", "train/.x.jpg", "train/a/notes.txt", "train/IMG.jpg")
    for path in tmp_path.rglob("*"):
        os.utime(path, (1000, 1000))
    store = LateStore(tmp_path)
    folder = scan(store)
    listing = store.list("train")
    tags = dict(zip(listing.names, listing.tags.tolist(), strict=True))
    assert folder.train.files == ("a/1.jpg", "a b/1.jpg", "b/1.jpg")
    assert folder.train.tags is not None
    assert folder.train.tags.tolist() == [tags[file] for file in folder.train.files]
    assert len(set(folder.train.tags.tolist()) - {b""}) == 3


@pytest.mark.parametrize("name", [".git", "__MACOSX", "__macosx", "Thumbs.db", "THUMBS.DB"])
def test_what_is_passed_over_is_passed_over_as_a_folder_and_deep_down_too(tmp_path: Path, name: str) -> None:
    folder = scanned(tmp_path, *THREE, f"train/{name}/1.jpg", f"train/a/deep/{name}/1.jpg", f"train/a/deep/x/{name}")
    assert folder.train.files == ("a/1.jpg", "b/1.jpg")
    assert (folder.class_names, folder.ignored) == (("a", "b"), ())


def test_names_that_look_like_those_passed_over_are_kept(tmp_path: Path) -> None:
    folder = scanned(tmp_path, *THREE, "train/a/x__1.jpg", "train/__c/thumbs.jpg", "train/a..b/1..jpg")
    assert folder.train.files == ("__c/thumbs.jpg", "a/1.jpg", "a/x__1.jpg", "a..b/1..jpg", "b/1.jpg")


def test_the_folders_of_each_split_are_told(tmp_path: Path) -> None:
    (tmp_path / "valid" / "empty").mkdir(parents=True)
    folder = scanned(tmp_path, *THREE, "valid/.x/1.jpg", "test/b/1.jpg")
    assert folder.folders == {"train": ("a", "b"), "valid": ("a", "empty"), "test": ("b",)}
    assert folder.location == str(tmp_path)


class TestClassNames:
    def test_they_are_those_of_a_scan_without_a_look_at_a_photo(self, tmp_path: Path) -> None:
        place(tmp_path, *THREE, "train/.cache/1.jpg", "train/a b/1.jpg", "val0/q/1.jpg", "test/d/1.jpg")
        (tmp_path / "valid" / "empty").mkdir()

        class Blind(LocalStore):
            def list(self, folder: str) -> Listing:
                raise AssertionError(folder)

        assert class_names(Blind(tmp_path)) == ("a", "a b", "b", "d", "empty")
        assert class_names(Blind(tmp_path)) == scan(LocalStore(tmp_path)).class_names

    @pytest.mark.parametrize("absent", ["train", "valid"])
    def test_a_missing_split_is_refused(self, tmp_path: Path, absent: str) -> None:
        place(tmp_path, *(file for file in THREE if not file.startswith(absent)))
        with pytest.raises(DataError, match=rf"has no {absent}/ folder"):
            class_names(LocalStore(tmp_path))


class TestPhotoList:
    @pytest.fixture
    def photos(self, tmp_path: Path) -> PhotoList:
        """3 photos, none, and 2 in another store, of which nobody knows the versions."""
        one, two = LateStore(place(tmp_path / "one", "train/a/1.jpg", "train/a/2.jpg", "train/b/3.jpg")), tmp_path / "2"
        place(two, "test/a/4.jpg", "test/b/5.jpg")
        listing = one.list("train")
        none = Split("valid", one, "valid", (), ("a", "b"))
        last = Split("test", LocalStore(two, readers=8), "test", ("a/4.jpg", "b/5.jpg"), ("a", "b"), sealed=True)
        return PhotoList([Split("train", one, "train", listing.names, ("a", "b"), listing.tags), none, last])

    def test_photos_are_read_across_splits(self, tmp_path: Path, photos: PhotoList) -> None:
        places = ["one/train/a/1.jpg", "one/train/a/2.jpg", "one/train/b/3.jpg", "2/test/a/4.jpg", "2/test/b/5.jpg"]
        assert len(photos) == 5
        assert [photos.path(index) for index in range(5)] == [f"{tmp_path}/{file}" for file in places]
        assert [photos.read(index).decode() for index in range(5)] == [file.split("/", 1)[1] for file in places]

    def test_tags_stand_at_their_photos_and_are_empty_where_none_are_known(self, photos: PhotoList) -> None:
        assert photos.splits[0].tags is not None
        assert photos.tags.tolist() == [*photos.splits[0].tags.tolist(), b"", b""]
        assert len(set(photos.tags.tolist()[:3]) - {b""}) == 3
        assert photos.tags.dtype == np.dtype("S56")

    def test_the_most_readers_count(self, photos: PhotoList) -> None:
        assert photos.readers == 8
        assert PhotoList(photos.splits[:1]).readers == 1

    def test_none_is_a_list_too(self) -> None:
        for splits in ([], [Split("train", LocalStore(Path("p")), "train", (), ())]):
            photos = PhotoList(splits)
            assert (len(photos), len(photos.tags), photos.readers) == (0, 0, 1)

    def test_a_file_that_is_gone_is_named(self, tmp_path: Path, photos: PhotoList) -> None:
        (tmp_path / "2" / "test" / "b" / "5.jpg").unlink()
        with pytest.raises(DataError, match=rf"^{tmp_path}/2/test/b/5.jpg cannot be read: No such file"):
            photos.read(4)

    def test_the_names_hash_is_of_all_names_in_their_order(self, photos: PhotoList) -> None:
        def hashed(*splits: tuple[str, ...], root: str = "p") -> str:
            return PhotoList([Split("x", LocalStore(Path(root)), f, tuple(n), ()) for f, *n in splits]).names_hash()

        known = hashed(("train", "a/1.jpg", "b/2.jpg"), ("valid", "a/3.jpg"))
        assert len(known) == 32
        assert hashed(("train", "a/1.jpg", "b/2.jpg"), ("valid", "a/3.jpg"), root="elsewhere") == known
        others = [
            hashed(("train", "b/2.jpg", "a/1.jpg"), ("valid", "a/3.jpg")),
            hashed(("train", "a/1.jpg"), ("valid", "b/2.jpg", "a/3.jpg")),
            hashed(("train", "a/1.jpg", "b/2.jpg"), ("val", "a/3.jpg")),
            hashed(("train", "a/1.jpg", "b/2.jpg")),
            hashed(("train", "a/1.jpg", os.fsdecode(b"b/\xe9.jpg")), ("valid", "a/3.jpg")),
        ]
        assert len({known, *others}) == 6
