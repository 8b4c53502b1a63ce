"""What each check finds, word for word, and that it looks at no more photos than it names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pytest

from graft.data import findings
from graft.data.findings import Contents, Finding
from graft.errors import DataError

CLASSES = ("ant", "bee", "cat")
ROOT = Path(__file__).resolve().parents[1]


def contents(name: str, photos: str, *, sealed: bool = False) -> Contents:
    """A split from "CLASS/FILE:BYTES ..."; the bytes stand for the photo's hash, none for an unknown one."""
    pairs = [photo.partition(":") for photo in photos.split()]
    files = [file for file, _, _ in pairs]
    labels = np.array([CLASSES.index(file.partition("/")[0]) for file in files], np.int64)
    digests = np.array([data.encode() for _, _, data in pairs], "S16")
    return Contents(name, files, digests, None if sealed else labels)


def test_a_class_without_photos_is_named_by_its_folder() -> None:
    assert findings.missing_class(contents("train", "ant/1:a cat/1:c"), CLASSES) == [
        Finding(
            "missing_class",
            "warning",
            1,
            "train: 1 class without a photo: never predicted right, e.g. train/bee",
            ("train/bee",),
        )
    ]
    (found,) = findings.missing_class(contents("valid", "cat/1:c"), CLASSES)
    assert (found.count, found.files) == (2, ("valid/ant", "valid/bee"))
    assert findings.missing_class(contents("train", "ant/1:a bee/1:b cat/1:c"), CLASSES) == []


def test_classes_missing_from_a_sealed_split_are_only_counted() -> None:
    (found,) = findings.missing_class(contents("test", "ant/1:a ant/2:b", sealed=True), CLASSES)
    assert (found.count, found.files, found.message) == (2, (), "test: 2 classes without a photo: no figure")


@pytest.mark.parametrize(("sealed", "named"), [(False, ("test/bee",)), (True, ())])
def test_an_empty_folder_is_named_unless_sealed(sealed: bool, named: tuple[str, ...]) -> None:
    split = contents("test", "ant/1:a cat/1:c cat/2:d", sealed=sealed)
    (found,) = findings.empty_folder(split, ["ant", "bee", "cat"])
    assert (found.check, found.count, found.files) == ("empty_folder", 1, named)
    assert findings.empty_folder(split, ["ant", "cat"]) == []


def test_damaged_photos_are_named_but_those_of_a_sealed_split_counted() -> None:
    mask = np.array([False, True, True])
    split = contents("train", "ant/1:a ant/2:b bee/3:c")
    assert findings.not_an_image(split, mask) == [
        Finding(
            "not_an_image",
            "warning",
            2,
            "train: 2 photos that cannot be decoded, left out, e.g. train/ant/2",
            ("train/ant/2", "train/bee/3"),
        )
    ]
    sealed = contents("test", "ant/1:a ant/2:b bee/3:c", sealed=True)
    (found,) = findings.truncated(sealed, mask, "repair")
    assert (found.message, found.files) == ("test: 2 photos cut off at the end, the missing part is grey", ())
    (found,) = findings.truncated(sealed, mask, "skip")
    assert found.message == "test: 2 photos cut off at the end, left out"
    assert findings.truncated(split, ~mask & mask, "skip") == []


def test_ignored_files() -> None:
    (found,) = findings.ignored_files(["train/ant/notes.txt", "valid/stray.jpg"])
    assert (found.count, found.files) == (2, ("train/ant/notes.txt", "valid/stray.jpg"))
    assert findings.ignored_files([]) == []


def of_sizes(*sizes: int) -> Contents:
    return contents(
        "train", " ".join(f"{name}/{n}:" for name, size in zip(CLASSES, sizes, strict=True) for n in range(size))
    )


def test_imbalance_counts_the_classes_beyond_one_in_twenty() -> None:
    assert findings.imbalance(of_sizes(100, 5, 50), CLASSES) == []
    assert findings.imbalance(of_sizes(101, 5, 4), CLASSES) == [
        Finding(
            "imbalance",
            "warning",
            2,
            "train: ant has 101 photos and cat 4; 2 classes with less than 1/20 of the largest: "
            "data.balance=sampler or loss evens that out",
            ("train/bee", "train/cat"),
        )
    ]
    assert findings.imbalance(of_sizes(100, 0, 50), CLASSES) == [], "a class without photos is missing, not small"


def test_few_photos() -> None:
    (found,) = findings.few_photos(of_sizes(5, 4, 0), CLASSES)
    assert (found.count, found.files) == (1, ("train/bee",))


def test_the_same_bytes_in_two_splits_are_a_leak_named_with_both_paths() -> None:
    train = contents("train", "ant/1:a ant/2:b bee/1:c")
    valid = contents("valid", "ant/7:x bee/9:b")
    test = contents("test", "bee/5:c ant/4:x cat/1:y", sealed=True)
    found = {(f.check, f.files): f for f in findings.identical([train, valid, test])}
    assert {key: (f.count, f.level) for key, f in found.items()} == {
        ("identical_across_splits", ("valid/bee/9 = train/ant/2",)): (1, "warning"),
        ("identical_across_splits", ("test/bee/5 = train/bee/1",)): (1, "warning"),
        ("identical_across_splits", ("test/ant/4 = valid/ant/7",)): (1, "warning"),
        ("label_conflict", ("valid/bee/9 = train/ant/2",)): (1, "warning"),
    }
    assert found["label_conflict", ("valid/bee/9 = train/ant/2",)].message == (
        "1 photo under two classes: one label is wrong, e.g. valid/bee/9 = train/ant/2"
    )


def test_copies_inside_a_split_are_counted_and_named_where_their_classes_differ() -> None:
    train = contents("train", "ant/1:a ant/2:a ant/3:a bee/1:a cat/1:c")
    assert findings.identical([train, contents("valid", "ant/1:v")]) == [
        Finding(
            "label_conflict",
            "warning",
            1,
            "1 photo under two classes: one label is wrong, e.g. train/bee/1 = train/ant/1",
            ("train/bee/1 = train/ant/1",),
        ),
        Finding("identical_in_split", "warning", 3, "train: 3 superfluous copies"),
    ]


def test_copies_inside_a_sealed_split_are_not_named() -> None:
    test = contents("test", "ant/1:a bee/1:a", sealed=True)
    conflict, inside = findings.identical([contents("train", "cat/1:c"), test])
    assert (conflict.check, conflict.count, conflict.files) == ("label_conflict", 1, ())
    assert (inside.check, inside.count) == ("identical_in_split", 1)


def test_digests_that_share_their_first_half_differ_and_unknown_ones_are_no_copies() -> None:
    train = contents("train", "ant/1:12345678a ant/2:12345678b bee/1: bee/2:")
    assert findings.identical([train, contents("valid", "ant/3:12345678c ant/4:")]) == []


def test_on_leak_error_refuses_across_splits_but_not_inside_one() -> None:
    train, valid = contents("train", "ant/1:a ant/2:a"), contents("valid", "ant/3:b")
    findings.refuse(findings.identical([train, valid], "error"))
    leaky = findings.identical([train, contents("valid", "ant/3:a")], "error")
    with pytest.raises(DataError) as caught:
        findings.refuse(leaky)
    assert str(caught.value) == (
        "data.on_leak=error and photos are in two splits: valid: 1 photo also in train, byte for byte, e.g. "
        "valid/ant/3 = train/ant/1; accepted: remove them from one split (data.json names them all), or "
        "data.on_leak=warn"
    )
    findings.refuse(findings.identical([train, contents("valid", "ant/3:a")], "warn"))


def test_near_duplicates_name_the_likest_photo_and_leave_out_copies() -> None:
    train = contents("train", "ant/1:a bee/1:b cat/1:c")
    test = contents("test", "ant/5:x ant/6:b cat/7:z", sealed=True)
    pairs = [(0, 1), (0, 0), (1, 1), (2, 2)]
    assert findings.near_duplicates(test, train, pairs, checked=3) == [
        Finding(
            "near_duplicates",
            "warning",
            2,
            "test: 2 photos with the same picture as one in train (1 under another class), e.g. "
            "test/ant/5 = train/bee/1",
            ("test/ant/5 = train/bee/1", "test/cat/7 = train/cat/1"),
        )
    ]
    assert findings.near_duplicates(test, train, [(1, 1)], checked=3, on_leak="error") == []
    (found,) = findings.near_duplicates(test, train, pairs, checked=3, on_leak="error")
    assert found.level == "error"


def test_near_duplicates_of_a_part_say_so() -> None:
    train, valid = contents("train", "ant/1:a"), contents("valid", "ant/5:x ant/6:y")
    (found,) = findings.near_duplicates(valid, train, [], checked=1, on_leak="error")
    assert (found.level, found.count) == ("warning", 0)
    assert found.message == "valid: 1 of 2 photos checked for near-duplicates in train; none was found"
    (found,) = findings.near_duplicates(valid, train, [(0, 0)], checked=1)
    assert "(1 of 2 photos checked)" in found.message


def test_a_thousand_names_are_kept_and_all_are_counted() -> None:
    photos = " ".join(f"ant/{number}:{number}" for number in range(1500))
    (found,) = findings.identical([contents("train", photos), contents("valid", photos)])
    assert (found.count, len(found.files)) == (1500, 1000)


def test_the_summary_has_a_line_each_errors_first() -> None:
    found = [
        Finding("few_photos", "warning", 2, "train: two", ("train/a", "train/b")),
        Finding("near_duplicates", "error", 1, "valid: one", ("valid/a/1 = train/a/2",)),
    ]
    assert findings.summarise(found) == ["near_duplicates: valid: one", "few_photos: train: two (all in data.json)"]
    assert findings.summarise([]) == []


class Watched(Sequence[str]):
    """Names made when asked for, which count how often that happens."""

    def __init__(self, size: int) -> None:
        self.size, self.asked = size, 0

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        assert isinstance(at, int)
        self.asked += 1
        return f"{CLASSES[at % 3]}/{at}"

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("all photos are looped over")


def test_a_million_photos_are_not_looped_over() -> None:
    count = 1_000_000
    rng = np.random.default_rng(0)
    names = [Watched(count), Watched(count // 10)]
    hashes = [np.frombuffer(rng.bytes(16 * len(files)), "S16").copy() for files in names]
    hashes[1][:7] = hashes[0][30:37]
    train, valid = (
        Contents(name, files, digests, np.arange(len(files), dtype=np.int64) % 3)
        for name, files, digests in zip(("train", "valid"), names, hashes, strict=True)
    )
    leak = findings.identical([train, valid])
    checks = [findings.missing_class, findings.imbalance, findings.few_photos]
    assert [found for check in checks for found in check(train, CLASSES)] == []
    assert findings.empty_folder(train, CLASSES) == []
    assert findings.not_an_image(train, np.arange(count) == 5)[0].files == ("train/cat/5",)
    assert [(found.check, found.count) for found in leak] == [("identical_across_splits", 7)]
    assert sum(files.asked for files in names) < 50


def test_every_check_stands_in_the_policy() -> None:
    source = Path(findings.__file__).read_text()
    policy = (ROOT / "docs" / "data-checks.md").read_text()
    rows = {line.split("`")[1] for line in policy.splitlines() if line.startswith("| `")}
    assert rows == {
        "missing_class",
        "empty_folder",
        "ignored_files",
        "not_an_image",
        "truncated",
        "identical_across_splits",
        "near_duplicates",
        "label_conflict",
        "identical_in_split",
        "imbalance",
        "few_photos",
    }
    assert all(f'"{check}"' in source for check in rows)
    assert f"{findings.IMBALANCE} times" in policy
    assert f"fewer than {findings.FEW} " in policy
    assert f"{findings.NAMED:,} names" in policy
