"""The look at the photos of a run: what is used, what is damaged, and what training reads."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graft.data.checks import Damage
from graft.data.digests import DigestIndex
from graft.data.folder import scan
from graft.data.loader import Source
from graft.data.module import class_counts
from graft.errors import DataError
from graft.features.compute import Backbone, FeatureCache
from graft.images import render
from graft.inputs import InputSpec
from graft.photos import Photos, look_at_photos
from graft.stores import LocalStore
from tests.backbones import WIDTH, tiny_backbone
from tests.pictures import draw_folder, spoil, truncate

SPEC = InputSpec(image_size=32, resize=32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """3 classes of 4 + 2 + 2 photos."""
    return draw_folder(tmp_path / "photos", classes=3, train=4, valid=2, test=2, size=40)


@pytest.fixture
def damaged(root: Path) -> Path:
    """One truncated and one undecodable photo in every split."""
    for split in ("train", "valid", "test"):
        truncate(root / split / "class_0" / "001.jpg")
        spoil(root / split / "class_2" / "000.jpg")
    return root


class Bars:
    """Progress bars that remember what they were told."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, int, int]] = []

    @contextmanager
    def __call__(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        done: list[int] = []
        yield done.append
        self.shown.append((title, total, sum(done)))


def look(
    root: Path, *, cached: bool = True, bars: Bars | None = None, store: LocalStore | None = None, **changes: Any
) -> Photos:
    settings = {"views": 0, "plain": True, "seed": 0, "on_corrupt": "repair", "workers": 2, **changes}
    directory = root.parent / "cache" / "features"
    backbone = Backbone(tiny_backbone(), "tiny", SPEC, "torch", "fp32", "cpu", 4)
    cache = FeatureCache(directory, backbone, workers=2, index=changes.get("index")) if cached else None
    return look_at_photos(
        scan(store or LocalStore(root)), cache, directory, spec=SPEC, progress=bars or Bars(), **settings
    )


def read(source: Source | None, epoch: int = 0) -> torch.Tensor:
    assert source is not None
    return source.__getitems__([(epoch, index) for index in range(len(source))])[0]


def backbone_of(data: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    pixels = render(data, SPEC).pixels / 255
    images = torch.from_numpy((pixels - np.array(SPEC.mean)) / np.array(SPEC.std)).float().permute(2, 0, 1)
    with torch.inference_mode():
        features: np.ndarray[Any, np.dtype[np.float32]] = tiny_backbone()(images[None])[0].numpy()
    return features


COUNTS = {"train": 12, "valid": 6, "test": 6}


class TestDamage:
    def test_a_whole_folder_is_used_whole(self, root: Path) -> None:
        photos = look(root, on_corrupt="error")
        assert {name: len(split) for name, split in photos.splits.items()} == COUNTS
        assert photos.damage == tuple(Damage(name, (), ()) for name in COUNTS)
        assert (photos.computed, photos.reused, photos.precision) == (24, 0, "fp32")

    @pytest.mark.parametrize("cached", [True, False])
    @pytest.mark.parametrize(("on_corrupt", "lost"), [("repair", 1), ("skip", 2)])
    def test_damaged_photos_are_named_and_left_out(
        self, damaged: Path, cached: bool, on_corrupt: str, lost: int
    ) -> None:
        photos = look(damaged, cached=cached, on_corrupt=on_corrupt)
        assert photos.damage == tuple(
            Damage(name, truncated=("class_0/001.jpg",), undecodable=("class_2/000.jpg",)) for name in COUNTS
        )
        for name, split in photos.splits.items():
            assert len(split) == len(photos.digests[name]) == COUNTS[name] - lost
            assert "class_2/000.jpg" not in split.files
            assert ("class_0/001.jpg" in split.files) is (on_corrupt == "repair")

    @pytest.mark.parametrize("cached", [True, False])
    @pytest.mark.parametrize("split", ["train", "valid", "test"])
    def test_error_stops_at_a_damaged_photo_of_any_split(self, root: Path, cached: bool, split: str) -> None:
        truncate(root / split / "class_1" / "001.jpg")
        with pytest.raises(DataError, match=rf"1 damaged photo in {split}: .*/{split}/class_1/001.jpg; accepted"):
            look(root, cached=cached, on_corrupt="error")

    def test_a_split_that_is_all_garbage_is_an_error(self, root: Path) -> None:
        for path in (root / "valid").rglob("*.*g"):
            spoil(path)
        with pytest.raises(DataError, match=r"/valid: .* leaves none of its 6 photos: 6 cannot be decoded"):
            look(root)

    def test_features_belong_to_their_photos_also_after_a_gap(self, damaged: Path) -> None:
        photos = look(damaged)
        for name, split in photos.splits.items():
            found = read(photos.source(split.opened()))
            expected = np.stack([backbone_of(split.read(index)) for index in range(len(split))])
            assert np.abs(found.numpy() - expected).max() < 1e-5, name

    def test_labels_belong_to_their_photos_also_after_a_gap(self, damaged: Path) -> None:
        photos = look(damaged)
        train = photos.splits["train"]
        _, labels = photos.source(train).__getitems__([(0, index) for index in range(11)])
        assert labels.tolist() == [int(file[6]) for file in train.files] == [0] * 4 + [1] * 4 + [2] * 3


class TestViews:
    def test_plain_alone_is_the_default(self, root: Path) -> None:
        photos = look(root)
        first, second = (read(photos.train_source(), epoch) for epoch in (0, 1))
        assert first.shape == (12, WIDTH)
        assert torch.equal(first, second)

    def test_every_epoch_shows_another_view_until_all_were_shown(self, root: Path) -> None:
        photos = look(root, views=2)
        assert photos.computed == 24 + 2 * 12
        epochs = [read(photos.train_source(), epoch) for epoch in range(4)]
        plain = read(photos.source(photos.splits["train"]))
        assert torch.equal(epochs[3], epochs[0])
        for index in range(12):
            shown = torch.stack([epochs[epoch][index] for epoch in range(3)])
            assert len({tuple(vector.tolist()) for vector in shown}) == 3
            assert (shown == plain[index]).all(dim=1).tolist() == [(epoch + index) % 3 == 0 for epoch in range(3)]

    def test_without_the_plain_view_training_never_sees_it(self, root: Path) -> None:
        photos = look(root, views=2, plain=False)
        train = photos.splits["train"]
        plain = np.stack([backbone_of(train.read(index)) for index in range(len(train))])
        epochs = [read(photos.train_source(), epoch).numpy() for epoch in range(3)]
        assert all((np.abs(epoch - plain).max(axis=1) > 1e-4).sum() >= 11 for epoch in epochs)
        assert np.array_equal(epochs[0], epochs[2])
        assert not np.array_equal(epochs[0], epochs[1])

    def test_valid_and_test_have_the_plain_view_only(self, root: Path) -> None:
        photos = look(root, views=2, plain=False)
        for name in ("valid", "test"):
            split = photos.splits[name].opened()
            expected = np.stack([backbone_of(split.read(index)) for index in range(len(split))])
            for epoch in (0, 1):
                assert np.abs(read(photos.source(split), epoch).numpy() - expected).max() < 1e-5

    def test_another_seed_gives_other_views_and_the_same_seed_costs_nothing(self, root: Path) -> None:
        first = look(root, views=1, plain=False)
        assert look(root, views=1, plain=False).computed == 0
        assert look(root, views=2).computed == 12
        other = look(root, views=1, plain=False, seed=1)
        assert other.computed == 12
        assert not torch.equal(read(other.train_source()), read(first.train_source()))

    def test_damaged_photos_have_no_views(self, damaged: Path) -> None:
        photos = look(damaged, views=1)
        assert photos.computed == 24 + 11
        assert read(photos.train_source(), 1).shape == (11, WIDTH)


class TestLook:
    def test_a_second_look_computes_nothing(self, damaged: Path) -> None:
        first, second = look(damaged, views=1), look(damaged, views=1)
        assert (second.computed, second.reused) == (0, 24 + 11)
        assert second.describe() == first.describe()
        assert torch.equal(read(second.train_source(), 1), read(first.train_source(), 1))

    @pytest.mark.parametrize("cached", [True, False])
    def test_with_an_index_a_second_look_reads_only_what_changed(
        self, damaged: Path, cached: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now, read = time.time_ns, list[str]()
        monkeypatch.setattr(time, "time_ns", lambda: now() + 60 * 10**9)  # no file counts as just written

        class Noting(LocalStore):
            def read(self, name: str, tag: bytes = b"") -> bytes:
                read.append(name)
                return super().read(name, tag)

        def again() -> tuple[Photos, list[str]]:
            read.clear()
            photos = look(
                damaged,
                cached=cached,
                store=Noting(damaged),
                index=DigestIndex(damaged.parent / "cache"),
            )
            return photos, sorted(read)

        first, names = again()
        assert len(names) == 24
        second, names = again()
        assert names == []
        assert second.describe() == first.describe()
        assert second.computed == 0
        truncate(damaged / "valid" / "class_1" / "000.jpg")
        third, names = again()
        assert names == ["valid/class_1/000.jpg"]
        assert third.computed == 1
        assert third.damage[1].truncated == ("class_0/001.jpg", "class_1/000.jpg")
        assert third.describe() == look(damaged, cached=cached).describe()

    def test_the_bars_reach_their_ends(self, root: Path) -> None:
        bars = Bars()
        look(root, views=2, bars=bars)
        look(root, cached=False, bars=bars)
        assert bars.shown == [
            ("looking at photos", 24, 24),
            ("view 1 of 2", 12, 12),
            ("view 2 of 2", 12, 12),
            ("checking photos", 24, 24),
        ]

    def test_without_a_cache_training_reads_images(self, damaged: Path) -> None:
        photos = look(damaged, cached=False)
        assert photos.train_source() is None
        assert photos.views == {}
        valid = photos.splits["valid"]
        images = read(photos.source(valid))
        expected = np.stack([render(valid.read(index), SPEC).pixels for index in range(len(valid))])
        assert np.array_equal(images.numpy(), expected)
        assert look(damaged, cached=False).computed == 0

    def test_no_worker_is_one_worker(self, root: Path) -> None:
        assert look(root, cached=False, workers=0).computed == 24

    def test_the_labels_of_test_stay_sealed(self, root: Path) -> None:
        photos = look(root)
        with pytest.raises(DataError, match="the labels of test are sealed"):
            photos.source(photos.splits["test"])

    def test_without_test_there_are_two_splits(self, tmp_path: Path) -> None:
        photos = look(draw_folder(tmp_path / "photos", classes=2, train=2, valid=1, test=0, size=40))
        assert list(photos.splits) == ["train", "valid"]
        assert photos.computed == 6

    def test_the_description_is_plain_and_tells_no_label_of_test(self, damaged: Path) -> None:
        (damaged / "train" / "class_0" / "notes.txt").write_text("none")
        description = look(damaged, on_corrupt="skip").describe()
        json.dumps(description)
        assert description["photos"] == {"train": 10, "valid": 4, "test": 4}
        assert description["classes"] == {
            "train": {"class_0": 3, "class_1": 4, "class_2": 3},
            "valid": {"class_0": 1, "class_1": 2, "class_2": 1},
        }
        assert description["ignored"] == ["train/class_0/notes.txt"]
        named = {"truncated": ["class_0/001.jpg"], "undecodable": ["class_2/000.jpg"]}
        assert json.loads(json.dumps(description["damaged"])) == [
            {"split": "train", **named},
            {"split": "valid", **named},
            {"split": "test", "truncated": 1, "undecodable": 1},
        ]

    def test_the_classes_of_test_are_not_counted(self, root: Path) -> None:
        test = look(root).splits["test"]
        with pytest.raises(DataError, match="the labels of test are sealed"):
            class_counts(test)
        assert class_counts(test.opened()) == {"class_0": 2, "class_1": 2, "class_2": 2}

    def test_fingerprints_follow_the_photos_that_are_used(self, root: Path) -> None:
        before = {name: look(root).fingerprint(name) for name in ("train", "valid")}
        (root / "train" / "class_0" / "000.jpg").rename(root / "train" / "class_1" / "renamed.jpg")
        assert look(root).fingerprint("train") == before["train"]
        spoil(root / "train" / "class_1" / "001.jpg")
        after = look(root)
        assert after.fingerprint("train") != before["train"]
        assert after.fingerprint("valid") == before["valid"]
