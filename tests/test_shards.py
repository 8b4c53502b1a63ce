"""Records in append-only files: written, found by key, tidied."""

from __future__ import annotations

import errno
import os
import random
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from graft import shards as shards_module
from graft.shards import Keys, Records, Shards, open_shard

RECORD = np.dtype([("key", "S4"), ("value", "<i8")])


def shards_in(path: Path) -> Shards:
    return Shards(path / "records", RECORD)


def records(*numbers: int) -> Records:
    """The value of key n is n squared."""
    return np.array([(b"%04d" % number, number**2) for number in numbers], RECORD)


def keys(*numbers: int) -> NDArray[np.bytes_]:
    return np.array([b"%04d" % number for number in numbers], "S4")


def held(shards: Shards) -> list[list[int]]:
    """The values of each shard, the shards in the order of their values."""
    return sorted(shard["value"].tolist() for shard in shards.open())


class TestShards:
    def test_what_was_appended_is_there(self, tmp_path: Path) -> None:
        shards = shards_in(tmp_path)
        assert shards.open() == []
        shards.append(records(3, 1))
        shards.append(records(2))
        assert held(shards) == [[4], [9, 1]]
        assert all(isinstance(shard, np.memmap) for shard in shards.open())
        assert all(shard.dtype == RECORD for shard in shards.open())

    def test_another_process_may_have_any_number_of_them(self, tmp_path: Path) -> None:
        for number in range(20):
            shards_in(tmp_path).append(records(number))
        assert held(shards_in(tmp_path)) == [[number**2] for number in range(20)]

    def test_no_records_are_a_shard_too(self, tmp_path: Path) -> None:
        shards = shards_in(tmp_path)
        shards.append(records())
        shards.append(records(1))
        shards.tidy()
        assert held(shards) == [[], [1]]

    def test_tidying_nothing_does_nothing(self, tmp_path: Path) -> None:
        shards_in(tmp_path).tidy()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
    def test_a_torn_shard_goes_alone_and_is_said(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float
    ) -> None:
        shards = shards_in(tmp_path)
        shards.append(records(*range(100)))
        [torn] = shards.path.iterdir()
        shards.append(records(200))
        torn.write_bytes(torn.read_bytes()[: int(torn.stat().st_size * share)])
        assert open_shard(torn) is None
        shards.tidy()
        assert held(shards) == [[40000]]
        assert capsys.readouterr().err == f"{torn} is damaged and was removed; what it held is computed again\n"

    def test_files_of_other_records_go(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shards = shards_in(tmp_path)
        shards.append(records(1))
        other = np.dtype([("key", "S4"), ("value", "<f8")])
        np.save(shards.path / "0.npy", np.zeros(3, other))
        np.save(shards.path / "1.npy", np.array([{}], object), allow_pickle=True)
        (shards.path / "2.npy").write_bytes(b"no array at all, but long enough for a header" * 9)
        shards.tidy()
        assert held(shards) == [[1]]
        assert len(capsys.readouterr().err.splitlines()) == 3

    def test_what_a_killed_process_left_goes(self, tmp_path: Path) -> None:
        shards = shards_in(tmp_path)
        shards.append(records(1))
        (shards.path / ".0123.npy.x7k2").write_bytes(b"\x93NUMPY")
        (shards.path / "space.json").write_text("{}")
        assert held(shards) == [[1]]
        shards.tidy()
        assert sorted(path.suffix for path in shards.path.iterdir()) == [".json", ".npy"]
        assert held(shards) == [[1]]

    def test_few_shards_are_left_alone(self, tmp_path: Path) -> None:
        shards = shards_in(tmp_path)
        for number in range(shards_module.JOIN_FROM - 1):
            shards.append(records(number))
        before = set(shards.path.iterdir())
        shards.tidy()
        assert set(shards.path.iterdir()) == before

    def test_many_small_ones_are_joined_in_full(self, tmp_path: Path) -> None:
        shards = shards_in(tmp_path)
        for number in range(shards_module.JOIN_FROM):
            shards.append(records(2 * number, 2 * number + 1))
        opened = shards.open()
        shards.tidy()
        [joined] = shards.open()
        assert sorted(joined["value"].tolist()) == [number**2 for number in range(32)]
        assert sum(len(shard) for shard in opened) == 32
        assert all((shard["value"] == [int(key) ** 2 for key in shard["key"]]).all() for shard in opened)

    def test_joined_ones_stay_below_a_size_and_large_ones_as_they_are(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shards = shards_in(tmp_path)
        shards.append(records(*range(100)))
        [large] = shards.path.iterdir()
        monkeypatch.setattr(shards_module, "JOINED_BYTES", large.stat().st_size)
        content = large.read_bytes()
        for number in range(100, 140):
            shards.append(records(number))
        small = max(path.stat().st_size for path in shards.path.iterdir() if path != large)
        shards.tidy()
        assert large.read_bytes() == content
        assert 2 < len(list(shards.path.iterdir())) < 20
        assert all(path.stat().st_size < large.stat().st_size + small for path in shards.path.iterdir())
        assert sorted(chain(*held(shards))) == [number**2 for number in range(140)]

    def test_a_process_killed_while_it_joins_loses_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shards = shards_in(tmp_path)
        for number in range(shards_module.JOIN_FROM):
            shards.append(records(number))
        unlink, left = Path.unlink, [3]

        def killed(path: Path, missing_ok: bool = False) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            unlink(path, missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killed)
            with pytest.raises(KeyboardInterrupt):
                shards.tidy()
        assert len(list(chain(*held(shards)))) == 2 * shards_module.JOIN_FROM - 3  # some twice
        shards.tidy()
        found = Keys([shard["key"] for shard in shards.open()]).rows(keys(*range(shards_module.JOIN_FROM)))
        values = np.concatenate([shard["value"] for shard in shards.open()])
        assert values[found].tolist() == [number**2 for number in range(shards_module.JOIN_FROM)]

    def test_a_failed_write_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shards = shards_in(tmp_path)
        shards.append(records(1))

        def fail(*paths: object) -> None:
            raise OSError(errno.ENOSPC, "no space left")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space left"):
            shards.append(records(2))
        assert len(list(shards.path.iterdir())) == 1


class TestKeys:
    def test_rows_count_through_all_shards(self) -> None:
        found = Keys([keys(5, 3), keys(), keys(9), keys(1, 7)])
        assert found.rows(keys(7, 3, 9, 5, 1, 3)).tolist() == [4, 1, 2, 0, 3, 1]
        assert found.rows(keys(7)).dtype == np.int64

    def test_what_is_not_there_has_no_row(self) -> None:
        found = Keys([keys(1, 3)])
        assert found.rows(keys(0, 1, 2, 3, 4)).tolist() == [-1, 0, -1, 1, -1]
        assert found.rows(keys()).tolist() == []
        for empty in (Keys([]), Keys([keys()])):
            assert empty.rows(keys(1, 2)).tolist() == [-1, -1]
            assert empty.rows(keys()).tolist() == []

    def test_a_key_that_is_there_twice_has_its_first_row(self) -> None:
        assert Keys([keys(2, 1), keys(1, 3), keys(2)]).rows(keys(1, 2, 3)).tolist() == [1, 0, 3]

    def test_keys_are_compared_to_their_last_byte(self) -> None:
        stored = np.array([b"abc", b"abc\0d", b"\0", b"abc\0\0e", b"\xff"], "S16")
        assert Keys([stored]).rows(stored[::-1]).tolist() == [4, 3, 2, 1, 0]
        asked = np.array([b"ab", b"abc\0", b"abcd", b"abc\0\0f"], "S16")
        assert Keys([stored]).rows(asked).tolist() == [-1, 0, -1, -1]  # a last zero byte is padding

    def test_it_agrees_with_a_dictionary(self) -> None:
        rng = random.Random(0)
        parts = [[rng.randrange(3000) for _ in range(rng.randrange(200))] for _ in range(9)]
        first: dict[int, int] = {}
        for row, number in enumerate(chain(*parts)):
            first.setdefault(number, row)
        rows = Keys([keys(*part) for part in parts]).rows(keys(*range(3000)))
        assert rows.tolist() == [first.get(number, -1) for number in range(3000)]
