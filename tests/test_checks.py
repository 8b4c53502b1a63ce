"""What `data.on_corrupt` makes of damaged photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from graft.data.checks import Damage, apply_policy
from graft.data.folder import Split
from graft.errors import DataError
from graft.stores import LocalStore

SPLIT = Split("train", LocalStore(Path("photos")), "train", ("a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg"), ("a", "b"))
WHOLE = np.zeros(4, bool)
SECOND = np.array([False, True, False, False])
FOURTH = np.array([False, False, False, True])


@pytest.mark.parametrize(
    ("on_corrupt", "kept"),
    [("repair", [True, True, True, False]), ("skip", [True, False, True, False])],
)
def test_repair_keeps_the_truncated_and_skip_does_not(on_corrupt: str, kept: list[bool]) -> None:
    keep, damage = apply_policy(SPLIT, SECOND, FOURTH, on_corrupt)
    assert keep.tolist() == kept
    assert damage == Damage("train", truncated=("a/2.jpg",), undecodable=("b/4.jpg",))


@pytest.mark.parametrize("on_corrupt", ["repair", "skip", "error"])
def test_a_whole_split_is_kept_whole(on_corrupt: str) -> None:
    keep, damage = apply_policy(SPLIT, WHOLE, WHOLE, on_corrupt)
    assert keep.all()
    assert damage == Damage("train", (), ())


@pytest.mark.parametrize(("truncated", "undecodable", "name"), [(SECOND, WHOLE, "a/2"), (WHOLE, FOURTH, "b/4")])
def test_error_names_the_photo(truncated: NDArray[np.bool_], undecodable: NDArray[np.bool_], name: str) -> None:
    with pytest.raises(DataError) as caught:
        apply_policy(SPLIT, truncated, undecodable, "error")
    assert str(caught.value) == (
        f"data.on_corrupt=error and 1 damaged photo in train: photos/train/{name}.jpg; "
        "accepted: mend them, or data.on_corrupt=repair or skip"
    )


def test_error_names_five_of_many_the_undecodable_first() -> None:
    split = Split("valid", LocalStore(Path("p")), "v", tuple(f"a/{number}.jpg" for number in range(9)), ("a",))
    undecodable = np.arange(9) >= 7
    with pytest.raises(
        DataError,
        match=r"9 damaged photos in valid: p/v/a/7.jpg, p/v/a/8.jpg, p/v/a/0.jpg, .*p/v/a/2.jpg, \.\.\.; accepted",
    ):
        apply_policy(split, ~undecodable, undecodable, "error")


def test_a_split_of_which_nothing_is_left_is_an_error() -> None:
    with pytest.raises(
        DataError, match=r"photos/train: data.on_corrupt=repair leaves none of its 4 photos: 4 cannot be decoded, 0"
    ):
        apply_policy(SPLIT, WHOLE, ~WHOLE, "repair")
    with pytest.raises(DataError, match=r"skip leaves none of its 4 photos: 1 cannot be decoded, 3 are truncated"):
        apply_policy(SPLIT, ~FOURTH, FOURTH, "skip")
    assert apply_policy(SPLIT, ~WHOLE, WHOLE, "repair")[0].all()
