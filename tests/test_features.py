"""The feature cache: shards, the pass that fills them, what makes it compute again, and its commands."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from graft import shards as shards_module
from graft.data.digests import UNKNOWN, DigestIndex, Digests, digest
from graft.data.folder import PhotoList, Split
from graft.errors import ConfigError, DataError, GraftError, WeightsError
from graft.features import __main__ as command
from graft.features import cache as cache_module
from graft.features import compute as compute_module
from graft.features import decode as decode_module
from graft.features import writer as writer_module
from graft.features.cache import OK, TRUNCATED, UNDECODABLE, Space, Table, evict, remove, usage
from graft.features.compute import Backbone, FeatureCache, inspect, known_digests
from graft.features.decode import Reading
from graft.features.engines import Engine, Pixels, Receive, make_engine
from graft.features.extract import Extracted, Job, extract
from graft.features.source import FeatureSource
from graft.images import render
from graft.inputs import IMAGENET_MEAN, InputSpec
from graft.model import fingerprint
from graft.stores import LocalStore
from graft.transforms import VIEW_VERSION
from tests.backbones import WIDTH, tiny_backbone
from tests.pictures import draw, spoil, truncate, write

ROOT = Path(__file__).resolve().parents[1]
SPEC = InputSpec(image_size=32, resize=36)
BATCH = 4
COLUMNS = 3


def space_in(root: Path, name: str = "corners", *, width: int = COLUMNS, dtype: str = "float32") -> Space:
    return Space(root, {"backbone": name, "view": "plain", "precision": "fp32"}, width, dtype)


def keys_of(*numbers: int) -> Digests:
    return np.array([b"key %012d" % number for number in numbers], "S16")


def fill(space: Space, *numbers: int) -> None:
    """One shard: the vector of key n is (n, n + 1/4, -n), its status n mod 3."""
    column = np.array(numbers, np.float32)
    features = np.stack([column, column + 0.25, -column], axis=1)
    with space.lock():
        space.append(keys_of(*numbers), (np.array(numbers) % 3).astype(np.uint8), features)


def read(space: Space) -> Table:
    with space.lock():
        space.tidy()
        return space.table()


def shards(space: Space) -> list[Path]:
    return sorted(space.path.glob("*.npy"))


class TestShards:
    def test_rows_and_vectors_across_shards_are_those_appended(self, tmp_path: Path) -> None:
        space = space_in(tmp_path)
        fill(space, 5, 3)
        fill(space, 9)
        fill(space, 1, 7, 2, 8)
        table = read(space)
        asked = [8, 3, 9, 5, 2, 7, 1, 3]
        rows = table.rows(keys_of(*asked))
        assert len(set(rows.tolist())) == 7
        expected = np.array([[n, n + 0.25, -n] for n in asked], np.float32)
        assert np.array_equal(table.features(rows), expected)
        assert table.features(rows).dtype == np.float32
        assert table.status(rows).tolist() == [n % 3 for n in asked]

    def test_unknown_keys_have_no_row(self, tmp_path: Path) -> None:
        space = space_in(tmp_path)
        assert read(space).rows(keys_of(1, 2)).tolist() == [-1, -1]
        fill(space, 1, 3)
        rows = read(space).rows(keys_of(0, 1, 2, 3, 4))
        assert (rows < 0).tolist() == [True, False, True, False, True]

    def test_keys_that_end_in_zero_bytes_are_told_apart(self, tmp_path: Path) -> None:
        space = space_in(tmp_path, width=1)
        keys = np.array([b"abc", b"abc\0d", b"\0", b"abc\0\0e"], "S16")
        space.append(keys, np.zeros(4, np.uint8), np.arange(4, dtype=np.float32)[:, None])
        table = read(space)
        assert table.features(table.rows(keys))[:, 0].tolist() == [0, 1, 2, 3]

    def test_rows_that_are_there_twice_do_no_harm(self, tmp_path: Path) -> None:
        space = space_in(tmp_path)
        fill(space, 1, 2)
        fill(space, 2, 3)
        table = read(space)
        assert table.features(table.rows(keys_of(3, 2, 1)))[:, 0].tolist() == [3, 2, 1]

    def test_half_precision_keeps_eleven_bits(self, tmp_path: Path) -> None:
        space = space_in(tmp_path, width=2, dtype="float16")
        space.append(keys_of(1), np.zeros(1, np.uint8), np.array([[1 / 3, 2049]], np.float32))
        table = read(space)
        assert table.features(table.rows(keys_of(1))).tolist() == [[0.333251953125, 2048]]
        assert table.shards[0].itemsize == 16 + 1 + 2 * 2

    def test_everything_of_the_description_makes_the_key(self, tmp_path: Path) -> None:
        space = space_in(tmp_path)
        others = [
            replace(space, describe={**space.describe, "view": [0, 1]}),
            replace(space, describe={**space.describe, "weights": "other"}),
            replace(space, width=4),
            replace(space, dtype="float16"),
        ]
        assert len({one.key for one in [space, *others]}) == 5
        assert replace(space, describe=dict(reversed(space.describe.items()))).key == space.key
        assert replace(space, root=tmp_path / "elsewhere").key == space.key

    def test_a_failed_write_leaves_no_shard(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        space = space_in(tmp_path)
        fill(space, 1)

        def fail(*paths: object) -> None:
            raise OSError(errno.ENOSPC, "no space left")

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            with pytest.raises(OSError, match="no space left"):
                fill(space, 2)
        assert len(list(space.path.iterdir())) == 1
        assert read(space).rows(keys_of(1, 2)).tolist() == [0, -1]

    def test_what_a_killed_process_left_is_removed(self, tmp_path: Path) -> None:
        space = space_in(tmp_path)
        fill(space, 1)
        read(space)
        unfinished = space.path / ".0123.npy.x7k2"
        unfinished.write_bytes(b"\x93NUMPY")
        assert read(space).rows(keys_of(1)).tolist() == [0]
        assert not unfinished.exists()

    @pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
    def test_a_torn_shard_is_removed_and_said(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float
    ) -> None:
        space = space_in(tmp_path)
        fill(space, *range(10))
        [torn] = shards(space)
        fill(space, *range(10, 20))
        data = torn.read_bytes()
        torn.write_bytes(data[: int(len(data) * share)])
        assert [one.photos for one in usage(tmp_path)] == []  # not read yet
        table = read(space)
        assert (table.rows(keys_of(*range(20))) < 0).tolist() == [True] * 10 + [False] * 10
        assert np.array_equal(table.features(table.rows(keys_of(15))), [[15, 15.25, -15]])
        assert not torn.exists()
        said = capsys.readouterr().err
        assert said == f"{torn} is damaged and was removed; what it held is computed again\n"

    def test_a_file_that_is_no_shard_of_this_space_is_removed(self, tmp_path: Path) -> None:
        space = space_in(tmp_path)
        fill(space, 1)
        np.save(space.path / "0.npy", np.zeros(3))
        (space.path / "1.npy").write_bytes(b"no array at all, but long enough for a header" * 9)
        assert read(space).rows(keys_of(1)).tolist() == [0]
        assert len(shards(space)) == 1

    def test_small_shards_are_joined_in_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        space = space_in(tmp_path)
        for number in range(shards_module.JOIN_FROM):
            fill(space, 2 * number, 2 * number + 1)
        before = read(space)
        rows = before.rows(keys_of(*range(32)))
        expected = np.array([[n, n + 0.25, -n] for n in range(32)], np.float32)
        assert len(shards(space)) == 1
        assert np.array_equal(before.features(rows), expected)
        assert before.status(rows).tolist() == [n % 3 for n in range(32)]
        # what is large enough stays as it is, and a table that is open reads on
        [large] = shards(space)
        monkeypatch.setattr(shards_module, "JOINED_BYTES", large.stat().st_size)
        for number in range(32, 32 + shards_module.JOIN_FROM):
            fill(space, number)
        after = read(space)
        assert large in shards(space)
        assert len(shards(space)) < 5
        assert (after.rows(keys_of(*range(48))) >= 0).all()
        assert np.array_equal(before.features(rows), expected)


class TestUsage:
    def test_spaces_come_with_their_size_the_latest_first(self, tmp_path: Path) -> None:
        old, new = space_in(tmp_path, "old"), space_in(tmp_path, "new")
        fill(old, 1, 2)
        fill(old, 3)
        fill(new, 1)
        for space, used in ((new, 2000), (old, 1000)):
            read(space)
            os.utime(space.path / "space.json", (used, used))
        found = usage(tmp_path)
        assert [(one.key, one.photos, one.used) for one in found] == [(new.key, 1, 2000), (old.key, 3, 1000)]
        assert found[1].bytes == sum(path.stat().st_size for path in shards(old))
        assert found[0].describe == {"backbone": "new", "view": "plain", "precision": "fp32", "width": COLUMNS}

    def test_reading_marks_a_space_as_used(self, tmp_path: Path) -> None:
        space = space_in(tmp_path)
        read(space)
        os.utime(space.path / "space.json", (1000, 1000))
        read(space)
        assert abs(usage(tmp_path)[0].used - time.time()) < 60

    def test_nothing_is_used_where_nothing_is(self, tmp_path: Path) -> None:
        assert usage(tmp_path / "absent") == []
        assert evict(tmp_path / "absent", 0, keep=[]) == []

    def test_a_damaged_shard_counts_its_bytes_only(self, tmp_path: Path) -> None:
        space = space_in(tmp_path)
        fill(space, 1, 2)
        read(space)
        shards(space)[0].write_bytes(b"torn")
        assert [(one.photos, one.bytes) for one in usage(tmp_path)] == [(0, 4)]

    def test_a_space_that_goes_meanwhile_is_left_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("a", "b"):
            fill(space_in(tmp_path, name), 1)
            read(space_in(tmp_path, name))
        gone = space_in(tmp_path, "a")
        measure = cache_module._measure

        def late(marker: Path) -> Any:
            if marker.parent == gone.path:
                shutil.rmtree(gone.path)
            return measure(marker)

        monkeypatch.setattr(cache_module, "_measure", late)
        assert [one.describe["backbone"] for one in usage(tmp_path)] == ["b"]


class TestEviction:
    @pytest.fixture
    def spaces(self, tmp_path: Path) -> list[Space]:
        """Four spaces of the same size, the first used longest ago."""
        made = [space_in(tmp_path, name) for name in "abcd"]
        for age, space in enumerate(made):
            fill(space, *range(10))
            read(space)
            os.utime(space.path / "space.json", (1000 + age, 1000 + age))
        return made

    def test_the_least_recently_used_go_until_the_rest_fits(self, tmp_path: Path, spaces: list[Space]) -> None:
        size = usage(tmp_path)[0].bytes
        assert evict(tmp_path, 4 * size, keep=[]) == []
        assert evict(tmp_path, 2.5 * size, keep=[]) == [spaces[0].key, spaces[1].key]
        assert [space.path.exists() for space in spaces] == [False, False, True, True]

    def test_what_this_run_uses_stays(self, tmp_path: Path, spaces: list[Space]) -> None:
        assert evict(tmp_path, 0, keep=[spaces[0].key, spaces[2].key]) == [spaces[1].key, spaces[3].key]

    def test_what_a_process_computes_stays(self, tmp_path: Path, spaces: list[Space]) -> None:
        size = usage(tmp_path)[0].bytes
        with spaces[0].lock():
            assert evict(tmp_path, 3 * size, keep=[]) == [spaces[1].key]
            assert not remove(tmp_path, spaces[0].key)
        assert remove(tmp_path, spaces[0].key)
        assert not spaces[0].path.exists()

    def test_a_space_is_removed_once(self, tmp_path: Path, spaces: list[Space]) -> None:
        assert remove(tmp_path, spaces[0].key)
        assert not remove(tmp_path, spaces[0].key)

    def test_a_table_reads_on_after_its_space_is_gone(self, tmp_path: Path, spaces: list[Space]) -> None:
        table = read(spaces[0])
        evict(tmp_path, 0, keep=[])
        assert table.features(table.rows(keys_of(4))).tolist() == [[4, 4.25, -4]]

    def test_a_process_that_waits_for_a_removed_space_gets_a_fresh_one(
        self, tmp_path: Path, spaces: list[Space]
    ) -> None:
        """The lock outlives the directory, so that the next two do not compute side by side."""
        lock = spaces[0].lock()
        shutil.rmtree(spaces[0].path)
        with lock:
            assert not remove(tmp_path, spaces[0].key)
            spaces[0].tidy()
            assert spaces[0].table().rows(keys_of(1)).tolist() == [-1]


class Corners:
    """An engine of three numbers per image; hands a batch over when the next one comes, as real ones do.

    The numbers are exact, so that any two ways to the same photo give the same bits.
    """

    def __init__(self, receive: Receive, *, fail_at: int | None = None, seconds: float = 0) -> None:
        self.receive, self.fail_at, self.seconds = receive, fail_at, seconds
        self.batches = 0
        self.waiting: tuple[Any, Pixels] | None = None

    def submit(self, pixels: Pixels, tag: Any) -> None:
        if self.batches == self.fail_at:
            raise KeyboardInterrupt
        self.batches += 1
        time.sleep(self.seconds)
        self.finish()
        self.waiting = tag, pixels

    def finish(self) -> None:
        if self.waiting is not None:
            tag, pixels = self.waiting
            self.waiting = None
            self.receive(tag, vectors_of(pixels))


def vectors_of(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Sums over two corners and the whole, float32 [B, COLUMNS]; not zero for a black image."""
    wide = pixels.astype(np.int64) + 1
    sums = [wide[:, :9, :9].sum((1, 2, 3)), wide[:, -9:, -9:, 0].sum((1, 2)), wide.sum((1, 2, 3))]
    return np.stack(sums, axis=1).astype(np.float32)


class Counted:
    """Makes `Corners`, and knows how many images they were given and what the progress said."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.engines: list[Corners] = []
        self.done: list[int] = []

    def __call__(self, receive: Receive) -> Corners:
        self.engines.append(Corners(receive, **self.settings))
        return self.engines[-1]


def listed(paths: Sequence[Path], store: LocalStore | None = None, tags: Sequence[bytes] | None = None) -> PhotoList:
    """Photos in the order given, in a store whose root is the root of all paths unless another one is given."""
    store = store or LocalStore(Path("/"))
    names = tuple(str(path.relative_to(store.root)) for path in paths)
    known = None if tags is None else np.array(tags, "S56")
    return PhotoList([Split("train", store, ".", names, (), known)])


def unknown(count: int) -> Digests:
    return np.full(count, UNKNOWN, "S16")


def digests_of(paths: Sequence[Path]) -> Digests:
    return np.array([digest(path.read_bytes()) for path in paths], "S16")


def job_of(paths: Sequence[Path], *, view: tuple[int, ...] | None = None, workers: int = 2) -> Job:
    """Nothing is known of the photos before they are read."""
    return Job(listed(paths), unknown(len(paths)), SPEC, view, BATCH, workers)


def known_job_of(paths: Sequence[Path]) -> Job:
    """The content hashes of the photos are known, so that only what is missing is read."""
    return replace(job_of(paths), digests=digests_of(paths))


def run(job: Job, space: Space, **settings: Any) -> tuple[Extracted, Counted]:
    counted = Counted(**settings)
    return extract(job, space, counted, counted.done.append), counted


def vectors(extracted: Extracted) -> NDArray[np.float32]:
    return extracted.table.features(extracted.rows)


def draw_photos(root: Path, count: int, size: int = 40) -> list[Path]:
    rng = np.random.default_rng(0)
    return [write(root / f"{number:03d}.jpg", draw(number % 4, rng, size)) for number in range(count)]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Eleven photos: three batches, the last not full."""
    return draw_photos(tmp_path / "photos", 11)


class TestExtract:
    def test_every_photo_has_the_vector_of_its_plain_view(self, tmp_path: Path, photos: list[Path]) -> None:
        extracted, _ = run(job_of(photos), space_in(tmp_path))
        expected = vectors_of(np.stack([render(path.read_bytes(), SPEC).pixels for path in photos]))
        assert np.array_equal(vectors(extracted), expected)
        assert extracted.table.status(extracted.rows).tolist() == [OK] * 11
        assert (extracted.computed, extracted.reused) == (11, 0)

    @pytest.mark.parametrize("workers", [0, 1, 5])
    def test_the_number_of_threads_changes_nothing(self, tmp_path: Path, photos: list[Path], workers: int) -> None:
        one, _ = run(job_of(photos), space_in(tmp_path / "a"))
        other, _ = run(job_of(photos, workers=workers), space_in(tmp_path / "b"))
        assert np.array_equal(vectors(one), vectors(other))

    def test_a_second_pass_computes_nothing(self, tmp_path: Path, photos: list[Path]) -> None:
        first, _ = run(job_of(photos), space_in(tmp_path))
        again, counted = run(job_of(photos[::-1]), space_in(tmp_path))
        assert (again.computed, again.reused) == (0, 11)
        assert counted.engines == []  # which take seconds to start
        assert np.array_equal(vectors(again), vectors(first)[::-1])

    def test_the_same_bytes_are_computed_once(self, tmp_path: Path, photos: list[Path]) -> None:
        copies = [Path(shutil.copy(path, tmp_path / f"copy of {path.name}")) for path in photos[:5]]
        # With one thread: of several, one may come to the copies first, and then a fourth batch has something new.
        extracted, counted = run(job_of([*photos, *copies], workers=1), space_in(tmp_path))
        assert extracted.computed == 11
        assert counted.engines[0].batches == 3
        assert np.array_equal(vectors(extracted)[11:], vectors(extracted)[:5])
        assert sum(counted.done) == 16

    def test_a_changed_photo_is_computed_and_no_other(self, tmp_path: Path, photos: list[Path]) -> None:
        first, _ = run(job_of(photos), space_in(tmp_path))
        write(photos[3], draw(5, np.random.default_rng(9), 40))
        moved = photos[7].rename(tmp_path / "moved.jpg")
        second, _ = run(job_of([*photos[:7], moved, *photos[8:]]), space_in(tmp_path))
        assert (second.computed, second.reused) == (1, 10)
        changed = (vectors(first) != vectors(second)).any(axis=1)
        assert changed.tolist() == [number == 3 for number in range(11)]

    def test_more_photos_cost_only_themselves(self, tmp_path: Path, photos: list[Path]) -> None:
        run(job_of(photos[:6]), space_in(tmp_path))
        extracted, _ = run(job_of(photos), space_in(tmp_path))
        assert (extracted.computed, extracted.reused) == (5, 6)
        whole, _ = run(job_of(photos), space_in(tmp_path / "other"))
        assert np.array_equal(vectors(extracted), vectors(whole))

    def test_progress_adds_up_to_all_photos(self, tmp_path: Path, photos: list[Path]) -> None:
        _, counted = run(job_of(photos, workers=1), space_in(tmp_path))
        assert counted.done == [0, 4, 4, 3]  # in order: a bar and a shard's age mean something
        _, counted = run(job_of(photos), space_in(tmp_path))
        assert counted.done == [0, 4, 4, 3]  # read, to find that they are there
        _, counted = run(known_job_of(photos), space_in(tmp_path))
        assert counted.done == [11]
        _, counted = run(known_job_of([*photos, *photos]), space_in(tmp_path / "other"))
        assert counted.done == [11, 4, 4, 3]

    def test_damaged_photos_have_a_status(self, tmp_path: Path, photos: list[Path]) -> None:
        truncate(photos[2])
        spoil(photos[5])
        photos[8].write_bytes(b"")
        extracted, _ = run(job_of(photos), space_in(tmp_path))
        status = extracted.table.status(extracted.rows).tolist()
        assert status == [OK, OK, TRUNCATED, OK, OK, UNDECODABLE, OK, OK, UNDECODABLE, OK, OK]
        assert not vectors(extracted)[[5, 8]].any()
        assert vectors(extracted)[[2, 4, 6]].all()
        assert run(job_of(photos), space_in(tmp_path))[0].computed == 0

    def test_a_damaged_shard_costs_its_photos_only(
        self, tmp_path: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        space = space_in(tmp_path)
        run(job_of(photos[:6]), space)
        [shard] = shards(space)
        whole = vectors(run(job_of(photos), space)[0])
        shard.write_bytes(shard.read_bytes()[:-1])
        mended, _ = run(job_of(photos), space)
        assert (mended.computed, mended.reused) == (6, 5)
        assert np.array_equal(vectors(mended), whole)
        assert "is damaged and was removed" in capsys.readouterr().err

    @pytest.mark.parametrize("rows", [4, 5, 1024])
    def test_a_shard_holds_so_many_rows(
        self, tmp_path: Path, photos: list[Path], rows: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writer_module, "SHARD_ROWS", rows)
        extracted, _ = run(job_of(photos), space_in(tmp_path))
        assert sorted(len(shard) for shard in extracted.table.shards) == {4: [3, 4, 4], 5: [3, 8], 1024: [11]}[rows]

    def test_a_view_depends_on_the_seed_and_the_bytes_alone(self, tmp_path: Path, photos: list[Path]) -> None:
        def view(*seed: int, of: Sequence[Path] = photos) -> NDArray[np.float32]:
            space = space_in(tmp_path / f"{len(list(tmp_path.iterdir()))}")
            return vectors(run(job_of(of, view=seed), space)[0])

        plain, first = vectors(run(job_of(photos), space_in(tmp_path / "plain"))[0]), view(0, 0)
        for other in (plain, view(0, 1), view(1, 0)):
            assert (other != first).any(axis=1).sum() >= 10
        assert np.array_equal(view(0, 0), first)
        # in another order, with other neighbours, under another name
        copies = [Path(shutil.copy(path, tmp_path / path.name)) for path in (photos[8], photos[2])]
        assert np.array_equal(view(0, 0, of=copies), first[[8, 2]])

    def test_decoding_stays_a_few_batches_ahead(self) -> None:
        started: list[int] = []

        def work(item: int) -> int:
            started.append(item)
            return item

        with ThreadPoolExecutor(1) as pool:
            results = decode_module.ahead(pool, work, range(10), 3)
            assert next(results) == 0
            pool.submit(int).result()  # everything that was asked for is done
            assert started == [0, 1, 2]
            assert list(results) == list(range(1, 10))

    @pytest.mark.parametrize(
        ("value", "dtype", "error", "message"),
        [
            (1e6, "float16", ConfigError, "features.precision=bf16: the largest feature of corners is 1e+06"),
            (1e-9, "float16", ConfigError, "features.precision=bf16: the largest feature of corners is 1e-09"),
            (np.nan, "float16", ConfigError, "accepted is fp32"),
            (np.nan, "float32", WeightsError, "model.weights: the features of corners are not finite"),
            (np.inf, "float32", WeightsError, "model.weights: the features of corners are not finite"),
        ],
    )
    def test_vectors_that_cannot_be_stored_are_refused(
        self, tmp_path: Path, photos: list[Path], value: float, dtype: str, error: type[GraftError], message: str
    ) -> None:
        class Constant(Corners):
            def finish(self) -> None:
                if self.waiting is not None:
                    (tag, pixels), self.waiting = self.waiting, None
                    self.receive(tag, np.full((len(pixels), COLUMNS), value, np.float32))

        space = space_in(tmp_path, dtype=dtype)
        with pytest.raises(error, match=re.escape(message)):
            extract(job_of(photos), space, Constant, lambda count: None)
        assert shards(space) == []

    @pytest.mark.parametrize("value", [6e4, 1e-4, 0])
    def test_vectors_that_float16_holds_are_stored(self, tmp_path: Path, value: float) -> None:
        writer_module._check_stored(np.full((2, 3), value, np.float32), space_in(tmp_path, dtype="float16"))


class Watched(LocalStore):
    """Reads photos, remembers which, and may take its time or fail."""

    def __init__(self, root: Path, *, readers: int = 1, seconds: float = 0, broken: str = "") -> None:
        super().__init__(root, readers)
        self.__dict__.update(seconds=seconds, broken=broken, names=[], running=0, most=0, lock=threading.Lock())

    seconds: float
    broken: str
    names: list[str]
    running: int
    most: int
    lock: threading.Lock

    def read(self, name: str, tag: bytes = b"") -> bytes:
        with self.lock:
            self.names.append(Path(name).name)
            self.__dict__["running"] += 1
            self.__dict__["most"] = max(self.most, self.running)
        time.sleep(self.seconds * (1 + len(self.names) % 3))
        with self.lock:
            self.__dict__["running"] -= 1
        if self.broken and name.endswith(self.broken):
            raise DataError(f"{name} cannot be read: the wire was cut")
        return super().read(name, tag)


class TestIndexed:
    """A pass with an index of content hashes; the tag of a photo is made up by the test."""

    @staticmethod
    def run(
        tmp_path: Path, paths: Sequence[Path], tags: Sequence[bytes], name: str = "corners"
    ) -> tuple[Extracted, list[str]]:
        """The result and the names of the photos that were read."""
        store, index = Watched(paths[0].parent), DigestIndex(tmp_path / "cache")
        photos = listed(paths, store, tags)
        job = replace(job_of(paths), photos=photos, digests=known_digests(photos, index), index=index)
        return run(job, space_in(tmp_path / "features", name))[0], sorted(store.names)

    @pytest.fixture
    def tags(self) -> list[bytes]:
        return [b"tag %d" % number for number in range(11)]

    def test_a_photo_of_known_tag_is_not_read_again(
        self, tmp_path: Path, photos: list[Path], tags: list[bytes]
    ) -> None:
        first, names = self.run(tmp_path, photos, tags)
        assert names == [path.name for path in photos]
        assert first.digests.tolist() == digests_of(photos).tolist()
        again, names = self.run(tmp_path, photos, tags)
        assert (names, again.computed, again.reused) == ([], 0, 11)
        assert again.digests.tolist() == first.digests.tolist()
        assert np.array_equal(vectors(again), vectors(first))

    def test_a_changed_photo_is_read_and_no_other(self, tmp_path: Path, photos: list[Path], tags: list[bytes]) -> None:
        first, _ = self.run(tmp_path, photos, tags)
        write(photos[3], draw(5, np.random.default_rng(9), 40))
        tags[3], tags[8] = b"changed", b"touched"
        second, names = self.run(tmp_path, photos, tags)
        assert names == ["003.jpg", "008.jpg"]
        assert (second.computed, second.reused) == (1, 10)
        assert second.digests.tolist() == digests_of(photos).tolist()
        changed = (vectors(first) != vectors(second)).any(axis=1)
        assert changed.tolist() == [number == 3 for number in range(11)]
        assert self.run(tmp_path, photos, tags)[1] == []

    def test_a_photo_without_a_tag_is_read_every_time(
        self, tmp_path: Path, photos: list[Path], tags: list[bytes]
    ) -> None:
        tags[2] = tags[5] = b""
        self.run(tmp_path, photos, tags)
        write(photos[5], draw(5, np.random.default_rng(9), 40))
        second, names = self.run(tmp_path, photos, tags)
        assert (names, second.computed) == (["002.jpg", "005.jpg"], 1)

    def test_where_vectors_are_missing_each_content_is_read_once(
        self, tmp_path: Path, photos: list[Path], tags: list[bytes]
    ) -> None:
        copies = [Path(shutil.copy(path, path.with_name(f"copy of {path.name}"))) for path in photos[:5]]
        every, all_tags = [*photos, *copies], [*tags, *(b"copy %d" % number for number in range(5))]
        first, names = self.run(tmp_path, every, all_tags)
        assert (len(names), first.computed, first.reused) == (16, 11, 0)  # unknown copies are computed once
        other, names = self.run(tmp_path, every, all_tags, name="other")
        assert (len(names), other.computed) == (11, 11)  # known ones are read once
        assert np.array_equal(vectors(other), vectors(first))
        assert np.array_equal(vectors(other)[11:], vectors(other)[:5])
        assert len(np.unique(other.rows)) == 11

    def test_each_file_is_noted_once(self, tmp_path: Path, photos: list[Path], tags: list[bytes]) -> None:
        for name in "abc":
            self.run(tmp_path, photos, tags, name=name)
        noted = [np.load(path)["tag"].tolist() for path in (tmp_path / "cache" / "digests").glob("*.npy")]
        assert sorted(chain(*noted)) == sorted(tags)

    def test_a_copy_that_is_changed_while_photos_are_read_is_an_error(
        self, tmp_path: Path, photos: list[Path], tags: list[bytes]
    ) -> None:
        """The copy that was read is another photo now, so nobody computed the one that was not."""
        shutil.copy(photos[3], photos[7])
        self.run(tmp_path, photos, tags)
        write(photos[3], draw(5, np.random.default_rng(9), 40))
        with pytest.raises(DataError, match=r"/007.jpg or a copy of it was changed while photos were read"):
            self.run(tmp_path, photos, tags, name="other")
        tags[3] = b"changed"
        found, _ = self.run(tmp_path, photos, tags, name="other")
        expected = vectors_of(np.stack([render(path.read_bytes(), SPEC).pixels for path in photos]))
        assert np.array_equal(vectors(found), expected)

    def test_real_tags_of_a_folder_do_the_same(
        self, tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: now() + 60 * 10**9)
        read: list[list[str]] = []
        for _ in range(3):
            tags = LocalStore(photos[0].parent).list("").tags.tolist()
            read.append(self.run(tmp_path, photos, tags)[1])
            if len(read) == 2:
                time.sleep(0.02)
                write(photos[4], draw(5, np.random.default_rng(9), 40))
        assert read == [[path.name for path in photos], [], ["004.jpg"]]


class TestReading:
    def portions(self, count: int, size: int = BATCH) -> list[NDArray[np.intp]]:
        return [np.arange(at, min(at + size, count)) for at in range(0, count, size)]

    def test_from_a_disk_photos_are_read_when_they_are_asked_for(self, tmp_path: Path, photos: list[Path]) -> None:
        store = Watched(tmp_path)
        with Reading(listed(photos, store), self.portions(11)) as reading:
            assert store.names == []
            assert reading.contents(1) == [path.read_bytes() for path in photos[4:8]]
            assert store.names == [path.name for path in photos[4:8]]

    def test_from_afar_they_come_in_order_some_portions_ahead(self, tmp_path: Path) -> None:
        photos = draw_photos(tmp_path / "photos", 60, size=9)
        store = Watched(tmp_path, readers=8, seconds=0.002)
        with Reading(listed(photos, store), self.portions(60)) as reading:
            for number in range(15):
                expected = [path.read_bytes() for path in photos[4 * number : 4 * number + 4]]
                assert reading.contents(number) == expected
                # 16 photos, two for every reader, are on their way beside the portion that was asked for
                begun, end = min(4 * (number + 1) + 16, 60), time.monotonic() + 10
                while len(store.names) < begun and time.monotonic() < end:
                    time.sleep(0.001)
                assert len(store.names) == begun
        assert sorted(store.names) == [path.name for path in photos]
        assert 4 <= store.most <= 8

    def test_portions_may_be_asked_for_out_of_order(self, tmp_path: Path) -> None:
        photos = draw_photos(tmp_path / "photos", 30, size=9)
        with Reading(listed(photos, Watched(tmp_path, readers=2)), self.portions(30)) as reading:
            for number in (1, 0, 5, 2, 7, 6, 4, 3):
                assert reading.contents(number) == [path.read_bytes() for path in photos[4 * number : 4 * number + 4]]

    @pytest.mark.parametrize("workers", [1, 4])
    def test_a_pass_gives_the_same_and_bounds_what_is_in_flight(self, tmp_path: Path, workers: int) -> None:
        photos = draw_photos(tmp_path / "photos", 100, size=33)
        near, _ = run(job_of(photos), space_in(tmp_path / "near"))
        store, far = Watched(tmp_path, readers=8, seconds=0.001), space_in(tmp_path / "far")
        taken: list[int] = []

        class Slow(Corners):
            def submit(self, pixels: Pixels, tag: Any) -> None:
                time.sleep(0.005)  # so that reading could run away
                taken.append(len(store.names) - 4 * len(taken))
                super().submit(pixels, tag)

        job = replace(job_of(photos, workers=workers), photos=listed(photos, store))
        found = extract(job, far, Slow, lambda count: None)
        assert np.array_equal(vectors(found), vectors(near))
        assert found.digests.tolist() == digests_of(photos).tolist()
        assert sorted(store.names) == [path.name for path in photos]
        # batches decoded ahead, and for the last of them what is read ahead
        assert max(taken) <= 4 * 2 * workers + 4 + 16
        assert len(taken) == 25
        assert store.most <= 8

    @pytest.mark.parametrize("readers", [1, 8])
    def test_a_photo_that_cannot_be_read_ends_the_pass_and_leaves_a_valid_cache(
        self, tmp_path: Path, readers: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writer_module, "SHARD_SECONDS", 0)
        photos = draw_photos(tmp_path / "photos", 60, size=33)
        store, space = (
            Watched(tmp_path, readers=readers, seconds=0.01, broken="042.jpg"),
            space_in(tmp_path / "features"),
        )
        index, tags = DigestIndex(tmp_path), [b"%d" % number for number in range(60)]
        job = replace(job_of(photos), photos=listed(photos, store, tags), index=index)
        with pytest.raises(DataError, match=r"photos/042.jpg cannot be read: the wire was cut"):
            run(job, space)
        threads = {thread.name.split("_")[0] for thread in threading.enumerate()}
        assert not threads & {"read", "decode"}
        assert len(store.names) < 60 + 1
        whole = listed(photos, Watched(tmp_path, readers=readers), tags)
        known = index.look_up(whole.tags)
        # ten batches came before the one that failed; the engine had the last of them
        assert (known != UNKNOWN).sum() == 40
        done = int((read(space).rows(digests_of(photos)) >= 0).sum())
        assert done == 36
        mended, _ = run(replace(job, photos=whole, digests=known), space)
        assert (mended.computed, mended.reused) == (24, 36)
        expected = vectors_of(np.stack([render(path.read_bytes(), SPEC).pixels for path in photos]))
        assert np.array_equal(vectors(mended), expected)
        assert (index.look_up(whole.tags) != UNKNOWN).all()

    def test_the_note_of_a_killed_team_goes_with_the_next_pass(self, tmp_path: Path, photos: list[Path]) -> None:
        space = space_in(tmp_path / "features")
        space.root.mkdir()
        (space.root / f"{space.key}.0123.team").touch()  # as a killed process leaves it
        (space.root / "other.0123.team").touch()
        run(job_of(photos), space)
        assert [path.name for path in space.root.glob("*.team")] == ["other.0123.team"]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What killed processes, and two at once, left of the photos in photos/."""
    root = tmp_path_factory.mktemp("processes")
    draw_photos(root / "photos", 120, size=33)
    in_process(f"work_in_processes(Path({str(root)!r}), {random.randrange(10**6)})")
    return root


class TestInterruption:
    def test_the_rest_alone_is_computed(
        self, tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, _ = run(job_of(photos), space_in(tmp_path / "whole"))
        monkeypatch.setattr(writer_module, "SHARD_SECONDS", 0)
        space = space_in(tmp_path / "features")
        with pytest.raises(KeyboardInterrupt):
            run(job_of(photos), space, fail_at=2)
        # Of two batches that were submitted, the engine had handed one over.
        copies = {known: Path(shutil.copytree(space.path.parent, tmp_path / f"{known}")) for known in (False, True)}
        for known, root in copies.items():
            job = known_job_of(photos) if known else job_of(photos)
            resumed, counted = run(job, space_in(root))
            assert (resumed.computed, resumed.reused) == (7, 4)
            assert counted.engines[0].batches == 2
            assert np.array_equal(vectors(resumed), vectors(whole))
            assert counted.done == ([4, 4, 3] if known else [0, 4, 4, 3])

    def test_the_lock_is_free_afterwards(self, tmp_path: Path, photos: list[Path]) -> None:
        space = space_in(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            run(job_of(photos), space, fail_at=0)
        with space.lock().acquire(timeout=0):
            pass

    def test_killed_three_times_and_then_finished(self, tmp_path: Path, processes: Path) -> None:
        photos = sorted((processes / "photos").iterdir())
        space = space_in(processes / "killed")
        done = int((read(space).rows(digests_of(photos)) >= 0).sum())
        assert 0 < done < 120
        resumed, _ = run(job_of(photos), space)
        assert (resumed.computed, resumed.reused) == (120 - done, done)
        whole, _ = run(job_of(photos), space_in(tmp_path / "whole"))
        assert np.array_equal(vectors(resumed), vectors(whole))
        assert list(space.path.glob(".*")) == []

    def test_the_index_of_killed_processes_is_right_and_knows_what_was_computed(self, processes: Path) -> None:
        photos = sorted((processes / "photos").iterdir())
        tags = np.array([b"%d" % number for number in range(120)], "S56")
        known = DigestIndex(processes / "as killed").look_up(tags)
        expected = digests_of(photos)
        assert ((known == UNKNOWN) | (known == expected)).all()
        assert (known != UNKNOWN).any()
        there = read(space_in(processes / "as killed")).rows(expected) >= 0
        # A shard is written before the notes that came with it: a kill between the two costs the notes of one flush.
        assert (there & (known == UNKNOWN)).sum() <= 2 * BATCH

    def test_two_processes_share_the_work(self, tmp_path: Path, processes: Path) -> None:
        reports = [json.loads((processes / f"{number}.json").read_text()) for number in range(2)]
        assert sorted(report["computed"] for report in reports) == [0, 24]
        whole, _ = run(job_of(sorted((processes / "photos").iterdir())[:24]), space_in(tmp_path))
        for number in range(2):
            assert np.array_equal(np.load(processes / f"{number}.npy"), vectors(whole))


# The rest runs in a fresh process, which forks before it has any thread.


def in_process(call: str) -> None:
    """Run a function of this module in another process."""
    code = f"from pathlib import Path; from tests.test_features import *; {call}"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=ROOT, timeout=120)


def forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def work_in_processes(root: Path, seed: int) -> None:
    """Both at once would only wait for each other's imports."""
    extract_twice_at_once(root)
    kill_three_times(root, seed)


def kill_three_times(root: Path, seed: int) -> None:
    """Extract slowly, with a shard every few batches, and be killed somewhere on the way."""
    rng = random.Random(seed)
    writer_module.SHARD_SECONDS = 0.02
    paths = sorted((root / "photos").iterdir())
    photos = listed(paths, tags=[b"%d" % number for number in range(len(paths))])
    index, space = DigestIndex(root / "killed"), space_in(root / "killed")

    def work() -> None:
        digests = known_digests(photos, index)
        run(replace(job_of(paths), photos=photos, digests=digests, index=index), space, seconds=0.05)

    for _ in range(3):
        child = forked(work)
        while not list(space.path.glob("*.npy")):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    shutil.copytree(root / "killed", root / "as killed")


def extract_twice_at_once(root: Path) -> None:
    """Two processes that want the same vectors; each leaves its count and its vectors."""
    paths = sorted((root / "photos").iterdir())[:24]

    def work(number: int) -> None:
        extracted, _ = run(job_of(paths), space_in(root / "shared"), seconds=0.02)
        (root / f"{number}.json").write_text(json.dumps({"computed": extracted.computed}))
        np.save(root / f"{number}.npy", vectors(extracted))

    children = [forked(partial(work, number)) for number in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def feature_cache(root: Path, module: nn.Module | None = None, **changes: Any) -> FeatureCache:
    settings = {"name": "tiny", "spec": SPEC, "engine": "torch", "precision": "fp32", "device": "cpu", "batch_size": 4}
    backbone = Backbone(module=module or tiny_backbone(), **{**settings, **changes})
    return FeatureCache(root, backbone, workers=2)


class TestFeatureCache:
    def plain(self, cache: FeatureCache, photos: list[Path]) -> Extracted:
        return cache.plain(listed(photos), lambda count: None)

    def test_the_vectors_are_the_backbones(self, tmp_path: Path, photos: list[Path]) -> None:
        backbone = tiny_backbone()
        found = self.plain(feature_cache(tmp_path, backbone), photos)
        pixels = np.stack([render(path.read_bytes(), SPEC).pixels for path in photos])
        images = (pixels / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)
        with torch.inference_mode():
            expected = backbone(torch.from_numpy(images).float().permute(0, 3, 1, 2)).numpy()
        assert vectors(found).shape == (11, WIDTH)
        assert np.abs(vectors(found) - expected).max() < 1e-5 * np.abs(expected).max()

    def test_half_precision_is_stored_in_half_the_room(self, tmp_path: Path, photos: list[Path]) -> None:
        full = self.plain(feature_cache(tmp_path), photos)
        half = self.plain(feature_cache(tmp_path, precision="bf16"), photos)
        assert half.computed == 11
        assert full.table.shards[0].dtype["feature"].base == np.float32
        assert half.table.shards[0].dtype["feature"].base == np.float16
        assert np.abs(vectors(half) - vectors(full)).max() < 0.02 * vectors(full).max()

    @pytest.mark.parametrize(
        "changes",
        [
            {"module": tiny_backbone(seed=1)},
            {"name": "other"},
            {"spec": replace(SPEC, resize=40)},
            {"spec": replace(SPEC, image_size=36)},
            {"spec": replace(SPEC, fit="squash")},
            {"spec": replace(SPEC, mean=(0.5, 0.5, 0.5))},
            {"spec": replace(SPEC, std=IMAGENET_MEAN)},
            {"precision": "bf16"},
        ],
        ids=lambda changes: "-".join(changes),
    )
    def test_another_function_computes_everything_again(
        self, tmp_path: Path, photos: list[Path], changes: dict[str, Any]
    ) -> None:
        assert self.plain(feature_cache(tmp_path), photos).computed == 11
        other = feature_cache(tmp_path, **changes)
        assert self.plain(other, photos).computed == 11
        assert self.plain(other, photos).computed == 0
        assert self.plain(feature_cache(tmp_path), photos).computed == 0

    def test_one_changed_weight_or_statistic_is_another_function(self, tmp_path: Path, photos: list[Path]) -> None:
        self.plain(feature_cache(tmp_path), photos)
        for name in ("0.weight", "1.running_var"):
            changed = tiny_backbone()
            changed.state_dict()[name].view(-1)[0] += 0.5
            assert self.plain(feature_cache(tmp_path, changed), photos).computed == 11

    def test_the_device_counts_where_it_computes(self, tmp_path: Path) -> None:
        keys = {
            (engine, device): feature_cache(tmp_path, engine=engine, device=device)._space(None).key
            for engine in ("torch", "openvino")
            for device in ("cpu", "cuda")
        }
        assert keys["openvino", "cpu"] == keys["openvino", "cuda"]
        assert len(set(keys.values())) == 3

    def test_the_batch_size_is_no_part_of_the_function(self, tmp_path: Path, photos: list[Path]) -> None:
        self.plain(feature_cache(tmp_path), photos)
        assert self.plain(feature_cache(tmp_path, batch_size=7), photos).computed == 0

    def test_views_lie_beside_the_plain_one(self, tmp_path: Path, photos: list[Path]) -> None:
        cache, digests = feature_cache(tmp_path), digests_of(photos)
        plain = self.plain(cache, photos)
        views = [cache.view(number, 5, listed(photos), digests, lambda count: None) for number in (0, 1, 0)]
        assert [view.computed for view in views] == [11, 11, 0]
        assert not np.array_equal(vectors(views[0]), vectors(views[1]))
        assert not np.array_equal(vectors(views[0]), vectors(plain))
        assert np.array_equal(vectors(views[0]), vectors(views[2]))
        assert sorted(str(one.describe["view"]) for one in usage(tmp_path)) == ["[5, 0]", "[5, 1]", "plain"]

    def test_other_crops_are_other_features(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = feature_cache(tmp_path)
        plain, view = cache._space(None).key, cache._space((5, 0)).key
        monkeypatch.setattr(compute_module, "VIEW_VERSION", VIEW_VERSION + 1)
        assert cache._space(None).key == plain
        assert cache._space((5, 0)).key != view

    def test_all_passes_share_one_engine(
        self, tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[Engine] = []

        def count(*args: Any, **settings: Any) -> Engine:
            made.append(make_engine(*args, **settings))
            return made[-1]

        monkeypatch.setattr(compute_module, "make_engine", count)
        cache, digests = feature_cache(tmp_path / "shared"), digests_of(photos)
        shared = [cache.view(number, 5, listed(photos), digests, lambda count: None) for number in (0, 1)]
        assert len(made) == 1
        for number, view in enumerate(shared):
            other = feature_cache(tmp_path / str(number))
            alone = other.view(number, 5, listed(photos), digests, lambda count: None)
            assert np.array_equal(vectors(view), vectors(alone))

    def test_what_an_interrupted_pass_left_in_the_engine_reaches_no_other(
        self, tmp_path: Path, photos: list[Path]
    ) -> None:
        cache, given = feature_cache(tmp_path), {"first": list[Any](), "second": list[Any]()}
        pixels = np.zeros((4, 32, 32, 3), np.uint8)
        cache._make(lambda tag, vectors: given["first"].append(tag)).submit(pixels, 1)
        second = cache._make(lambda tag, vectors: given["second"].append(tag))
        second.submit(pixels, 2)
        second.finish()
        assert given == {"first": [1], "second": [2]}

    def test_weights_that_were_hashed_are_not_hashed_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hashed = feature_cache(tmp_path)._space(None).key
        known = fingerprint(tiny_backbone())
        monkeypatch.delattr(compute_module, "fingerprint")
        assert feature_cache(tmp_path, fingerprint=known)._space(None).key == hashed
        assert feature_cache(tmp_path, fingerprint="other")._space(None).key != hashed

    def test_eviction_keeps_what_this_run_read(self, tmp_path: Path, photos: list[Path]) -> None:
        other = feature_cache(tmp_path, name="other")
        self.plain(other, photos)
        mine = feature_cache(tmp_path)
        self.plain(mine, photos)
        mine.view(0, 0, listed(photos), digests_of(photos), lambda count: None)
        assert len(mine.evict(0)) == 1
        assert [one.describe["backbone"] for one in usage(tmp_path)] == ["tiny", "tiny"]


def test_inspection_tells_what_is_wrong_and_is_kept(tmp_path: Path, photos: list[Path]) -> None:
    truncate(photos[2])
    spoil(photos[5])
    done: list[int] = []
    first = inspect(listed(photos), tmp_path / "features", workers=2, progress=done.append)
    status = [TRUNCATED if n == 2 else UNDECODABLE if n == 5 else OK for n in range(11)]
    assert first.table.status(first.rows).tolist() == status
    assert (first.computed, sum(done)) == (11, 11)
    again = inspect(listed(photos), tmp_path / "features", workers=2, progress=done.append)
    assert again.computed == 0
    assert again.table.status(again.rows).tolist() == status
    assert vectors(again).shape == (11, 0)
    [used] = usage(tmp_path / "features")
    assert used.bytes < 11 * 17 + 200


class TestSource:
    @pytest.fixture
    def source(self, tmp_path: Path) -> FeatureSource:
        """Three views of five photos: the vector of photo i in view v is (10 v + i, ...)."""
        views = []
        for view in range(3):
            space = space_in(tmp_path, f"view {view}")
            numbers = [10 * view + photo for photo in range(5)]
            fill(space, *numbers[3:], *numbers[:3])
            table = read(space)
            views.append(Extracted(table, table.rows(keys_of(*numbers)), keys_of(*numbers), 5, 0))
        return FeatureSource(views, np.array([4, 3, 2, 1, 0]))

    def test_a_photo_shows_another_view_in_every_epoch(self, source: FeatureSource) -> None:
        for epoch, expected in enumerate(
            [[0, 11, 22, 3, 14], [10, 21, 2, 13, 24], [20, 1, 12, 23, 4], [0, 11, 22, 3, 14]]
        ):
            inputs, labels = source.__getitems__([(epoch, photo) for photo in range(5)])
            assert inputs[:, 0].tolist() == expected
            assert inputs[:, 2].tolist() == [-n for n in expected]
            assert labels.tolist() == [4, 3, 2, 1, 0]

    def test_a_batch_comes_in_the_order_of_its_places(self, source: FeatureSource) -> None:
        inputs, labels = source.__getitems__([(0, 4), (1, 0), (0, 0), (2, 4)])
        assert inputs[:, 0].tolist() == [14, 10, 0, 4]
        assert labels.tolist() == [0, 4, 4, 0]
        assert (inputs.dtype, labels.dtype, len(source)) == (torch.float32, torch.int64, 5)


class TestCommand:
    @pytest.fixture
    def spaces(self, tmp_path: Path) -> list[Space]:
        root = tmp_path / "cache" / "features"
        described: list[dict[str, Any]] = [
            {"backbone": "resnet50", "view": "plain", "precision": "bf16"},
            {"backbone": "resnet50", "view": [3, 0], "precision": "bf16"},
            {"backbone": "none", "view": "decoded at 224 pixels"},
        ]
        made = [Space(root, describe, COLUMNS, "float32") for describe in described]
        for age, space in enumerate(made):
            fill(space, *range(age + 1))
            read(space)
            os.utime(space.path / "space.json", (86400 * (30 - age), 86400 * (30 - age)))
        return made

    def call(self, tmp_path: Path, *arguments: str) -> int:
        return command.main([*arguments[:1], "--cache-dir", str(tmp_path / "cache"), *arguments[1:]])

    def test_list_shows_a_row_per_space(
        self, tmp_path: Path, spaces: list[Space], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.call(tmp_path, "list") == 0
        rows = [re.split(r" *│ *", line.strip("│ ")) for line in capsys.readouterr().out.splitlines() if "│" in line]
        assert [row[:-1] for row in rows] == [
            [spaces[0].key, "resnet50", "plain", "bf16", "1", "0.0"],
            [spaces[1].key, "resnet50", "seed 3, view 0", "bf16", "2", "0.0"],
            [spaces[2].key, "none", "decoded at 224 pixels", "", "3", "0.0"],
        ]
        assert [row[-1][:8] for row in rows] == ["1970-01-"] * 3
        assert [row[-1] for row in rows] == sorted((row[-1] for row in rows), reverse=True)

    def test_clear_removes_what_is_named(
        self, tmp_path: Path, spaces: list[Space], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.call(tmp_path, "clear", spaces[1].key) == 0
        assert capsys.readouterr().out == f"removed {spaces[1].key}: 2 photos, 0.0 MB\n"
        assert [space.path.exists() for space in spaces] == [True, False, True]

    def test_clear_removes_everything(
        self, tmp_path: Path, spaces: list[Space], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.call(tmp_path, "clear") == 0
        assert len(capsys.readouterr().out.splitlines()) == 3
        assert usage(tmp_path / "cache" / "features") == []

    def test_an_unknown_key_removes_nothing(
        self, tmp_path: Path, spaces: list[Space], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.call(tmp_path, "clear", spaces[0].key, "fedcba") == 2
        written = capsys.readouterr()
        known = ", ".join(sorted(space.key for space in spaces))
        assert written.err == f"error: KEY=fedcba is not in {tmp_path}/cache/features; accepted: {known}\n"
        assert written.out == ""
        assert all(space.path.exists() for space in spaces)

    def test_what_is_being_computed_stays(
        self, tmp_path: Path, spaces: list[Space], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with spaces[0].lock():
            assert self.call(tmp_path, "clear") == 2
        written = capsys.readouterr()
        assert written.err.startswith(f"error: KEY={spaces[0].key} is being computed by another process and stays")
        assert len(written.out.splitlines()) == 2
        assert [space.path.exists() for space in spaces] == [True, False, False]

    def test_without_features_there_is_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("list", "clear"):
            assert self.call(tmp_path, name) == 0
            assert capsys.readouterr().out == f"no features in {tmp_path}/cache/features\n"

    def test_a_remote_cache_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["list", "--cache-dir", "s3://bucket/cache"]) == 2
        assert capsys.readouterr().err.startswith("error: --cache-dir=s3://bucket/cache: accepted is a local path")

    def test_it_runs_as_a_module_without_torch(self, tmp_path: Path) -> None:
        code = (
            "import runpy, sys; sys.argv = ['graft.features', 'list'];\n"
            "try: runpy.run_module('graft.features', run_name='__main__')\n"
            "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
        )
        assert done.stdout == "no features in cache/features\n0 False\n"
