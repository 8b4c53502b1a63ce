"""`python -m graft.data split`: exact numbers, duplicates, determinism, refusals, and what it prints."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import pytest

from graft.data.__main__ import main
from graft.data.split import LeftOut, assign, flat_names, split
from graft.errors import DataError

T = TypeVar("T")


def put(root: Path, name: str, content: str | bytes = b"") -> Path:
    """A file with this content, by default its own name: split reads bytes, not pixels."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content or name.encode())
    return path


def fill(root: Path, **sizes: int) -> Path:
    for name, size in sizes.items():
        for number in range(size):
            put(root, f"{name}/{number}.jpg")
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def count(root: Path, side: str, name: str) -> int:
    return len(list((root / side / name).glob("*")))


def sides_of(dst: Path) -> dict[bytes, set[str]]:
    """Content -> the sides where it lies."""
    found: dict[bytes, set[str]] = {}
    for path, content in tree(dst).items():
        found.setdefault(content, set()).add(path.split("/")[0])
    return found


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos", cat=20, dog=40)


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    return tmp_path / "mine"


def test_numbers_are_exact_in_every_class(src: Path, dst: Path) -> None:
    report = split(src, dst)
    assert [count(dst, side, "cat") for side in ("train", "valid", "test")] == [16, 2, 2]
    assert [count(dst, side, "dog") for side in ("train", "valid", "test")] == [32, 4, 4]
    assert report.photos == {"train": 48, "valid": 6, "test": 6}
    assert report.classes == ("cat", "dog")
    assert (report.duplicates, report.conflicts, report.left_out) == (0, (), ())
    assert report.thin == {"train": (), "valid": (), "test": ()}
    assert sorted(tree(dst).values()) == sorted(tree(src).values())
    assert (dst / "train/cat/0.jpg").is_file() or (dst / "valid/cat/0.jpg").is_file()
    assert not dst.with_name("mine.partial").exists()


@pytest.mark.parametrize(
    ("size", "valid", "test", "expected"),
    [
        (1, 0.1, 0.1, (1, 0, 0)),
        (2, 0.1, 0.1, (2, 0, 0)),
        (3, 0.1, 0.1, (1, 1, 1)),
        (15, 0.1, 0.1, (11, 2, 2)),
        (100, 0.2, 0.1, (70, 20, 10)),
        (3, 0.5, 0.4, (1, 1, 1)),
        (4, 0.45, 0.45, (1, 2, 1)),
        (2, 0.1, 0.0, (1, 1, 0)),
        (50, 0.1, 0.0, (45, 5, 0)),
        (1, 0.9, 0.0, (1, 0, 0)),
    ],
)
def test_portions_of_one_class(size: int, valid: float, test: float, expected: tuple[int, ...]) -> None:
    sides = list(assign({"a": [str(n) for n in range(size)]}, valid=valid, test=test, seed=0).values())
    assert tuple(sides.count(side) for side in ("train", "valid", "test")) == expected


def test_portions_hold_for_every_size_and_share() -> None:
    for size in range(1, 40):
        for valid, test in ((0.1, 0.1), (0.3, 0.3), (0.01, 0.9), (0.9, 0.05), (0.5, 0.0)):
            contents = {"a": [str(n) for n in range(size)]}
            sides = list(assign(contents, valid=valid, test=test, seed=size).values())
            assert len(sides) == size
            assert "train" in sides
            if size >= 3:
                assert "valid" in sides
                assert ("test" in sides) == (test > 0)


def test_no_test_share_makes_no_test_folder(src: Path, dst: Path) -> None:
    report = split(src, dst, test=0)
    assert sorted(path.name for path in dst.iterdir()) == ["train", "valid"]
    assert report.photos == {"train": 54, "valid": 6, "test": 0}
    assert report.thin == {"train": (), "valid": ()}


def test_a_small_class_is_named_where_it_has_no_photo(tmp_path: Path, dst: Path) -> None:
    report = split(fill(tmp_path / "photos", cat=10, rare=2), dst)
    assert report.thin == {"train": (), "valid": ("rare",), "test": ("rare",)}
    assert count(dst, "train", "rare") == 2


def test_the_same_seed_gives_the_same_split_and_another_does_not(src: Path, tmp_path: Path) -> None:
    trees = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        split(src, tmp_path / name, seed=seed)
        trees.append(tree(tmp_path / name))
    assert trees[0] == trees[1]
    assert trees[0] != trees[2]
    assert len(trees[0]) == len(trees[2])


def test_the_order_is_the_hash_of_seed_class_and_content() -> None:
    """Fixed for good: a later version must not move photos from test to train."""
    ranked = sorted("abcdefghij", key=lambda digest: hashlib.sha256(f"7/cat/{digest}".encode()).digest())
    sides = assign({"cat": list("abcdefghij")}, valid=0.2, test=0.1, seed=7)
    assert [sides[digest] for digest in ranked] == ["test"] + ["valid"] * 2 + ["train"] * 7


def test_names_and_directory_order_do_not_matter(src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split(src, tmp_path / "a")
    renamed = tmp_path / "renamed"
    for path, content in tree(src).items():
        name, file = path.split("/")
        put(renamed, f"{name}/new_{99 - int(Path(file).stem):02d}.PNG", content)
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: list(reversed(listed(folder))))
    split(renamed, tmp_path / "b")
    assert sides_of(tmp_path / "a") == sides_of(tmp_path / "b")


def test_a_copy_under_another_name_moves_nothing(src: Path, tmp_path: Path) -> None:
    split(src, tmp_path / "a")
    for name in ("0 copy.jpg", "a/1.jpg", "zz.jpeg"):
        put(src, f"cat/{name}", b"cat/3.jpg")
    report = split(src, tmp_path / "b")
    assert sides_of(tmp_path / "a") == sides_of(tmp_path / "b")
    assert report.duplicates == 3
    assert sum(report.photos.values()) == 63


def test_another_valid_share_leaves_test_as_it_is(src: Path, tmp_path: Path) -> None:
    split(src, tmp_path / "a", valid=0.1)
    split(src, tmp_path / "b", valid=0.3)
    assert tree(tmp_path / "a/test") == tree(tmp_path / "b/test")


def test_duplicates_stay_on_one_side(src: Path, dst: Path) -> None:
    for number in range(20):
        put(src, f"cat/copy_{number}.png", f"cat/{number}.jpg")
    report = split(src, dst)
    assert report.duplicates == 20
    assert [count(dst, side, "cat") for side in ("train", "valid", "test")] == [32, 4, 4]
    assert all(len(sides) == 1 for sides in sides_of(dst).values())


def test_one_photo_under_two_classes_is_a_label_conflict(src: Path, dst: Path) -> None:
    for number in range(10):
        put(src, f"dog/same_{number}.jpg", f"cat/{number}.jpg")
    report = split(src, dst)
    assert report.duplicates == 10
    pairs = tuple((Path(f"cat/{n}.jpg"), Path(f"dog/same_{n}.jpg")) for n in range(10))
    assert report.conflicts == pairs
    sides = sides_of(dst)
    assert all(sides[f"cat/{number}.jpg".encode()] == {"train"} for number in range(10))
    # The portions are of all the photos of a class: 20 and 50.
    assert [count(dst, side, "cat") for side in ("train", "valid", "test")] == [16, 2, 2]
    assert [count(dst, side, "dog") for side in ("train", "valid", "test")] == [40, 5, 5]


def test_classes_that_share_photos_keep_their_own_for_valid_and_test() -> None:
    sides = assign({"a": ["x", "1", "2"], "b": ["x", "3", "4"]}, valid=0.1, test=0.1, seed=0)
    assert sides["x"] == "train"
    assert {sides["1"], sides["2"]} == {sides["3"], sides["4"]} == {"valid", "test"}


def test_what_is_no_photo_is_left_out_by_name(src: Path, dst: Path) -> None:
    put(src, "readme.txt")
    put(src, "loose.jpg")
    put(src, "cat/notes.TXT")
    put(src, "cat/LICENSE")
    put(src, "dog/empty.jpg").write_bytes(b"")
    (src / "dog/gone.jpg").symlink_to(src / "nowhere.jpg")
    (src / "dog/up").symlink_to(src)
    report = split(src, dst)
    assert set(report.left_out) == {
        LeftOut(Path("readme.txt"), "not in a class folder"),
        LeftOut(Path("loose.jpg"), "not in a class folder"),
        LeftOut(Path("cat/notes.TXT"), "not a photo (.txt)"),
        LeftOut(Path("cat/LICENSE"), "not a photo (no suffix)"),
        LeftOut(Path("dog/empty.jpg"), "empty file"),
        LeftOut(Path("dog/gone.jpg"), "broken link"),
        LeftOut(Path("dog/up"), "linked folder"),
    }
    assert len(report.left_out) == 7
    assert sum(report.photos.values()) == len(tree(dst)) == 60


def test_hidden_and_system_files_are_ignored(src: Path, dst: Path) -> None:
    for name in (".hidden/a.jpg", "__MACOSX/a.jpg", "cat/.a.jpg", "cat/__MACOSX/a.jpg", "cat/Thumbs.db"):
        put(src, name)
    report = split(src, dst)
    assert report.left_out == ()
    assert report.classes == ("cat", "dog")
    assert sum(report.photos.values()) == 60


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "JPG", "JpEg", "TIFF"])
def test_suffixes_that_are_accepted(tmp_path: Path, dst: Path, suffix: str) -> None:
    for number in range(6):
        put(tmp_path / "photos", f"{'ab'[number % 2]}/{number}.{suffix}")
    assert sum(split(tmp_path / "photos", dst).photos.values()) == 6
    assert all(path.endswith(suffix) for path in tree(dst))


def test_nested_folders_are_flattened_without_collision(tmp_path: Path, dst: Path) -> None:
    paths = ["x/a/b.jpg", "x/a_b.jpg", "x/A/b.jpg", "x/a_b-2.jpg", "x/deep/er/c.jpg", "x/c.jpg"]
    for path in [*paths, "y/1.jpg", "y/2.jpg", "y/3.jpg"]:
        put(tmp_path / "photos", path)
    split(tmp_path / "photos", dst)
    named = {content.decode(): path.split("/")[2] for path, content in tree(dst).items() if path.split("/")[1] == "x"}
    assert named == {
        "x/a_b.jpg": "a_b.jpg",
        "x/a_b-2.jpg": "a_b-2.jpg",
        "x/c.jpg": "c.jpg",
        "x/A/b.jpg": "A_b-3.jpg",
        "x/a/b.jpg": "a_b-4.jpg",
        "x/deep/er/c.jpg": "deep_er_c.jpg",
    }


def test_flat_names_do_not_depend_on_the_order() -> None:
    paths = [Path("x/a/b.jpg"), Path("x/a_b.jpg"), Path("x/A/b.jpg")]
    assert flat_names(paths) == flat_names(reversed(paths))


def test_copies_are_copies_and_links_are_links(src: Path, tmp_path: Path) -> None:
    (src / "cat/0.jpg").chmod(0o444)
    split(src, tmp_path / "copied")
    split(src, tmp_path / "linked", link=True)
    originals = {path.stat().st_ino for path in src.rglob("*.jpg")}
    copies = {path.stat().st_ino for path in (tmp_path / "copied").rglob("*.jpg")}
    links = {path.stat().st_ino for path in (tmp_path / "linked").rglob("*.jpg")}
    assert not copies & originals
    assert all(path.stat().st_mode & 0o200 for path in (tmp_path / "copied").rglob("*.jpg"))
    assert links == originals
    assert tree(tmp_path / "copied") == tree(tmp_path / "linked")


def test_linked_photos_and_class_folders_are_followed(tmp_path: Path, src: Path, dst: Path) -> None:
    elsewhere = fill(tmp_path / "elsewhere", bird=10)
    (src / "bird").symlink_to(elsewhere / "bird")
    (src / "cat/far.jpg").symlink_to(put(tmp_path, "far.jpg"))
    assert split(src, dst, link=True).photos == {"train": 57, "valid": 7, "test": 7}
    assert not any(path.is_symlink() for path in dst.rglob("*"))


def test_an_empty_destination_is_accepted(src: Path, dst: Path) -> None:
    dst.mkdir()
    split(src, dst)
    assert len(tree(dst)) == 60


def refusal(src: Path, dst: Path, **arguments: float) -> str:
    with pytest.raises(DataError) as caught:
        split(src, dst, **arguments)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"valid": 0.0}, "valid=0.0: accepted is a share above 0 and below 1"),
        ({"valid": 1.0}, "valid=1.0: accepted is a share above 0 and below 1"),
        ({"valid": float("nan")}, "valid=nan: accepted is a share above 0 and below 1"),
        ({"test": -0.1}, "test=-0.1: accepted is a share from 0 to below 1"),
        ({"test": 1.0}, "test=1.0: accepted is a share from 0 to below 1"),
        (
            {"valid": 0.5, "test": 0.5},
            "valid=0.5 test=0.5: nothing is left for train; accepted is a sum below 1",
        ),
        ({"seed": -1}, "seed=-1: accepted is a whole number from 0"),
    ],
)
def test_shares_that_are_refused(src: Path, dst: Path, arguments: dict[str, float], message: str) -> None:
    assert refusal(src, dst, **arguments) == message
    assert not dst.exists()


LAYOUT = "accepted is a folder with at least two folders of photos, one per class"


def test_a_source_that_is_no_folder_of_classes_is_refused(tmp_path: Path, dst: Path) -> None:
    src = tmp_path / "photos"
    assert refusal(src, dst) == f"SRC={src}: no such folder; {LAYOUT}"
    put(src, "loose.jpg")
    file = src / "loose.jpg"
    assert refusal(file, dst) == f"SRC={file}: not a folder; {LAYOUT}"
    assert refusal(src, dst) == f"SRC={src}: there are no folders in it; {LAYOUT}"
    fill(src, cat=5)
    assert refusal(src, dst) == f"SRC={src}: the only folder in it is cat/; {LAYOUT}"


@pytest.mark.parametrize("names", [["train"], ["train", "valid", "test"], ["cat", "test", "train"], ["Val"]])
def test_a_source_that_is_split_already_is_refused(tmp_path: Path, dst: Path, names: list[str]) -> None:
    src = tmp_path / "photos"
    for name in names:
        fill(src / name, cat=5, dog=5)
    listed = ", ".join(f"{name}/" for name in sorted(names) if name != "cat")
    assert refusal(src, dst) == (
        f"SRC={src}: is split already, it has {listed}; {LAYOUT} "
        f"(train on it as it is with data=folder data.root={src})"
    )


def test_one_class_may_be_called_train(tmp_path: Path, dst: Path) -> None:
    report = split(fill(tmp_path / "photos", train=10, ship=10), dst)
    assert report.classes == ("ship", "train")


def test_a_class_without_photos_is_refused(src: Path, dst: Path) -> None:
    put(src, "bird/notes.txt")
    (src / "ant").mkdir()
    assert refusal(src, dst) == (
        f"SRC={src}: no photo in ant/, bird/; accepted is at least one file per class that ends in "
        ".bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff, .webp"
    )


def test_too_few_photos_are_refused(tmp_path: Path, dst: Path) -> None:
    src = fill(tmp_path / "photos", cat=2, dog=2)
    assert refusal(src, dst) == (
        f"SRC={src}: too few photos for valid=0.1; accepted is at least one class with 3 photos that "
        "differ and lie under no other class"
    )
    split(src, dst, test=0)
    assert [count(dst, "train", "cat"), count(dst, "valid", "cat")] == [1, 1]


def test_destinations_that_are_refused(src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for inside in (src, src / "mine", src / "cat" / ".." / "mine"):
        assert refusal(src, inside) == (f"DST={inside}: lies inside SRC={src}; accepted is a folder outside it")
    monkeypatch.chdir(src)
    assert refusal(Path("."), Path("mine")) == "DST=mine: lies inside SRC=.; accepted is a folder outside it"
    before = tree(src)
    put(dst, "keep.txt")
    assert refusal(src, dst) == f"DST={dst}: is not empty; accepted is a new or an empty folder"
    assert tree(dst) == {"keep.txt": b"keep.txt"}
    file = dst / "keep.txt"
    assert refusal(src, file) == f"DST={file}: is a file; accepted is a new or an empty folder"
    assert tree(src) == before


def test_what_is_left_of_a_killed_split_is_not_deleted_for_the_person(src: Path, dst: Path) -> None:
    partial = put(dst.with_name("mine.partial"), "a.jpg").parent
    assert refusal(src, dst) == f"DST={dst}: {partial} is left of a split that was cut short; delete it first"
    assert (partial / "a.jpg").is_file()


class Interrupted:
    """Stops the work after some photos, as Ctrl-C does."""

    def __call__(self, sequence: Iterable[T], *, description: str) -> Iterable[T]:
        for number, item in enumerate(sequence):
            if description == "copying" and number == 30:
                raise KeyboardInterrupt
            yield item


def test_an_interrupted_split_leaves_nothing(src: Path, dst: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        split(src, dst, track=Interrupted())
    assert list(dst.parent.iterdir()) == [src]


def test_what_came_to_the_destination_meanwhile_is_kept(src: Path, dst: Path) -> None:
    class Busy:
        def __call__(self, sequence: Iterable[T], *, description: str) -> Iterable[T]:
            put(dst, "new.txt")
            return sequence

    with pytest.raises(DataError, match=r"cannot be written: .*Directory not empty"):
        split(src, dst, track=Busy())
    assert tree(dst) == {"new.txt": b"new.txt"}
    assert sorted(dst.parent.iterdir()) == [dst, src]


def test_a_full_disk_leaves_nothing(src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    message = refusal(src, dst)
    assert message.startswith(f"DST={dst}: cannot be written: [Errno 28] No space left on device: ")
    assert list(dst.parent.iterdir()) == [src]


def test_links_across_disks_are_refused(src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_disk(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    message = refusal(src, dst, link=True)
    assert message.startswith(f"--link: {src}/cat/")
    assert message.endswith(" cannot be linked: SRC and DST lie on different disks; leave --link out to copy")
    assert list(dst.parent.iterdir()) == [src]


def test_a_photo_that_cannot_be_read_is_named(src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(file: object, name: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", damaged)
    assert refusal(src, dst) == f"SRC: {src}/cat/0.jpg cannot be read: Input/output error"


def test_the_command_prints_numbers_and_the_next_command(
    src: Path, dst: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(src, "dog/same.jpg", "cat/1.jpg")
    put(src, "cat/[b]copy.jpg", "cat/5.jpg")
    fill(src, rare=1)
    for number in range(5):
        put(src, f"cat/{number}.heic")
    assert main(["split", str(src), str(dst)]) == 0
    out = capsys.readouterr().out
    rows = [line.strip("│ ").split("│") for line in out.splitlines() if line.startswith("│")]
    assert [(name.strip(), number.strip()) for name, number in rows] == [
        ("classes", "3"),
        ("photos in train", "51"),
        ("photos in valid", "6"),
        ("photos in test", "6"),
        ("duplicates", "2"),
        ("label conflicts", "1"),
        ("left out", "5"),
    ]
    assert out.splitlines()[-5:] == [
        "label conflict: the same photo is cat/1.jpg and dog/same.jpg (kept in train)",
        "left out, not a photo (.heic): 5: cat/0.heic, cat/1.heic, cat/2.heic and 2 more",
        "no photo in valid, too few in the class: rare",
        "no photo in test, too few in the class: rare",
        f"next: python train.py data=folder data.root={dst}",
    ]


def test_the_command_passes_its_options_on(src: Path, tmp_path: Path) -> None:
    options = ["--valid", "0.2", "--test", "0.3", "--seed", "5", "--link"]
    assert main(["split", str(src), str(tmp_path / "a"), *options]) == 0
    split(src, tmp_path / "b", valid=0.2, test=0.3, seed=5)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert all(path.stat().st_nlink == 2 for path in (tmp_path / "a").rglob("*.jpg"))


def test_the_next_command_survives_the_shell_and_hydra(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    from hydra.core.override_parser.overrides_parser import OverridesParser

    dst = tmp_path / "Anna's photos, 2024 (été)"
    assert main(["split", str(src), str(dst)]) == 0
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("next: ")
    override = OverridesParser.create().parse_override(shlex.split(command)[-1])
    assert override.key_or_group == "data.root"
    assert override.value() == str(dst)


def test_an_error_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = tmp_path / "photos"
    assert main(["split", str(src), str(tmp_path / "mine")]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: SRC={src}: no such folder; {LAYOUT}\n"
    assert captured.out == ""


def test_ctrl_c_is_one_line_and_exit_code_130(
    src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", interrupt)
    assert main(["split", str(src), str(dst)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted: nothing was written"
    assert list(dst.parent.iterdir()) == [src]


def test_the_command_does_without_torch() -> None:
    code = "import sys, graft.data.__main__; print(sorted({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
