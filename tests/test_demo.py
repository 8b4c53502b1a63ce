"""The demo set: what it holds, that shape tells its classes and colour does not, and that it deletes nothing else."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from graft.data import demo
from graft.errors import DataError

PER_CLASS, SEED = 25, 3
Floats = NDArray[np.float64]
Labels = NDArray[np.intp]
Classify = Callable[[Floats, Labels, Floats], Labels]
Photos = dict[str, tuple[list[NDArray[np.uint8]], Labels]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "demo"
    demo.generate(root, per_class=PER_CLASS, seed=SEED)
    return root


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rgb(path: Path) -> NDArray[np.uint8]:
    """Upright RGB without graft's decoder, so that a test of the data is not a test of the decoder."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "I;16":
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        return np.asarray(upright.convert("RGB"))


def colour_histogram(pixels: NDArray[np.uint8]) -> Floats:
    """Square roots of the shares of the 8 x 8 x 8 cells of RGB, so that small shares count too."""
    cells = (pixels // 32).astype(np.intp) @ np.array([64, 8, 1])
    roots: Floats = np.sqrt(np.bincount(cells.ravel(), minlength=512) / cells.size)
    return roots


def spectrum(pixels: NDArray[np.uint8]) -> Floats:
    """Which spatial frequencies the brightness of the centre has; blind to colour and position."""
    grey = ImageOps.fit(Image.fromarray(pixels).convert("L"), (48, 48))
    power = np.abs(np.fft.rfft2(np.asarray(grey) / 255 - 0.5))
    folded: Floats = np.log(power[:24, :24] + power[:-25:-1, :24] + 0.1).ravel()
    return folded


@pytest.fixture(scope="module")
def photos(root: Path) -> Photos:
    classes = sorted(path.name for path in (root / "train").iterdir())
    found = {}
    for split in ("train", "valid"):
        paths = sorted((root / split).glob("*/*"))
        labels = np.array([classes.index(path.parent.name) for path in paths], dtype=np.intp)
        found[split] = [rgb(path) for path in paths], labels
    return found


def nearest_centroid(x: Floats, y: Labels, queries: Floats) -> Labels:
    centroids = np.stack([x[y == label].mean(axis=0) for label in range(12)])
    nearest: Labels = np.linalg.norm(queries[:, None] - centroids[None], axis=2).argmin(axis=1)
    return nearest


def logistic_regression(x: Floats, y: Labels, queries: Floats) -> Labels:
    """Multinomial, 500 full steps of gradient descent."""
    weights = np.zeros((x.shape[1], 12))
    for _ in range(500):
        scores = np.exp(x @ weights)
        weights -= 20 / len(x) * x.T @ (scores / scores.sum(axis=1, keepdims=True) - np.eye(12)[y])
    likeliest: Labels = (queries @ weights).argmax(axis=1)
    return likeliest


def test_splits_hold_twelve_classes_of_the_promised_sizes(root: Path) -> None:
    counts = Counter(tuple(path.relative_to(root).parts[:2]) for path in root.glob("*/*/*"))
    per_split = {"train": 25, "valid": 5, "test": 5}
    assert len(demo.PATTERNS) == 12
    assert counts == {(split, name): n for split, n in per_split.items() for name in demo.PATTERNS}


@pytest.mark.parametrize(("per_class", "held_out"), [(1, 5), (29, 5), (100, 20)])
def test_valid_and_test_have_a_fifth_of_train_and_at_least_five(per_class: int, held_out: int) -> None:
    counts = Counter(picture.split for picture in demo.plan(per_class))
    assert counts == {"train": 12 * per_class, "valid": 12 * held_out, "test": 12 * held_out}


def test_record_says_what_was_drawn(root: Path) -> None:
    record = json.loads((root / "demo.json").read_text(encoding="utf-8"))
    assert record == {"per_class": 25, "seed": 3, "version": 1, "made_by": "graft.data.demo"}


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_every_split_has_every_mode(root: Path, split: str) -> None:
    seen: Counter[str] = Counter()
    for path in (root / split).glob("*/*"):
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) != 1
            seen[f"{image.format} {image.mode}{' turned' if turned else ''}"] += 1
    unusual = {"JPEG RGB turned", "JPEG CMYK", "JPEG L", "PNG I;16", "PNG RGBA", "PNG P"}
    assert set(seen) == unusual | {"JPEG RGB", "PNG RGB"}
    assert sum(seen[kind] for kind in unusual) == -(-seen.total() // 8)


def test_file_names_tell_the_format(root: Path) -> None:
    for path in (root / "test").glob("*/*"):
        with Image.open(path) as image:
            assert path.suffix == {"JPEG": ".jpg", "PNG": ".png"}[image.format or ""]


def test_sizes_vary_between_120_and_320_in_both_orientations(root: Path) -> None:
    sizes = [rgb(path).shape[:2] for path in (root / "valid").glob("*/*")]
    assert min(map(min, sizes)) >= 120
    assert max(map(max, sizes)) <= 320
    assert len(set(sizes)) > 50
    assert 10 < sum(height > width for height, width in sizes) < 50


@pytest.mark.parametrize("style", list(demo.STYLES))
def test_every_style_shows_the_drawing_upright(tmp_path: Path, style: str) -> None:
    suffix, save = demo.STYLES[style]
    for seed in range(12):  # all three orientations are among these
        drawn = demo.draw("triangles", np.random.default_rng(seed))
        path = tmp_path / f"{seed}{suffix}"
        save(drawn, path, np.random.default_rng(seed))
        want = drawn if style not in ("grey", "deep") else np.asarray(Image.fromarray(drawn).convert("L"))[..., None]
        got = rgb(path)
        assert got.shape == drawn.shape
        assert np.abs(got.astype(int) - want).mean() < 12


def test_turned_photos_have_each_orientation(tmp_path: Path) -> None:
    seen = set()
    for seed in range(12):
        path = tmp_path / f"{seed}.jpg"
        demo.STYLES["turned"][1](np.zeros((120, 130, 3), np.uint8), path, np.random.default_rng(seed))
        with Image.open(path) as image:
            seen.add(image.getexif()[0x0112])
    assert seen == {3, 6, 8}


@pytest.mark.parametrize("classify", [nearest_centroid, logistic_regression])
def test_colours_do_not_tell_the_class(photos: Photos, classify: Classify) -> None:
    (train, y), (valid, labels) = photos["train"], photos["valid"]
    x, queries = (np.stack([colour_histogram(p) for p in split]) for split in (train, valid))
    assert (classify(x, y, queries) == labels).mean() <= 0.3


def test_shapes_tell_the_class(photos: Photos) -> None:
    (train, y), (valid, labels) = photos["train"], photos["valid"]
    x, queries = (np.stack([spectrum(p) for p in split]) for split in (train, valid))
    assert (nearest_centroid(x, y, queries) == labels).mean() >= 0.8


def test_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        demo.generate(tmp_path / name, per_class=2, seed=5)
    demo.generate(tmp_path / "c", per_class=2, seed=6)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert not set(a.values()) & set(c.values())
    assert len(set(a.values())) == len(a)  # no two images alike, within a split or across


def test_same_arguments_again_touch_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "demo"
    demo.generate(root, per_class=1, seed=0)
    mine = root / "train" / "dots" / "mine.jpg"
    mine.write_bytes(b"a photo that someone added")
    monkeypatch.setattr(demo, "draw", None)
    demo.generate(root, per_class=1, seed=0)
    assert mine.exists()


def test_other_arguments_replace_it(tmp_path: Path) -> None:
    demo.generate(tmp_path / "demo", per_class=2, seed=0)
    demo.generate(tmp_path / "demo", per_class=1, seed=9)
    demo.generate(tmp_path / "fresh", per_class=1, seed=9)
    assert digests(tmp_path / "demo") == digests(tmp_path / "fresh")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".demo.lock", ".fresh.lock", "demo", "fresh"]


@pytest.mark.parametrize(
    "content", [None, "not json", "[]", '{"per_class": 1}', '{"per_class": 1, "seed": 0, "made_by": "x"}']
)
def test_a_folder_made_by_others_is_left_alone(tmp_path: Path, content: str | None) -> None:
    root = tmp_path / "photos"
    (root / "train" / "dots").mkdir(parents=True)
    (root / "train" / "dots" / "0000.jpg").write_bytes(b"a photo")
    if content is not None:
        (root / "demo.json").write_text(content, encoding="utf-8")
    before = digests(root)
    with pytest.raises(DataError, match=r"data\.root=.*photos exists and was not made by data=demo"):
        demo.generate(root, per_class=1, seed=0)
    assert digests(root) == before
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_photos_added_to_it_are_not_deleted(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    demo.generate(root, per_class=1, seed=0)
    mine = root / "train" / "dots" / "0001.jpg"
    mine.write_bytes(b"a photo that someone added")
    with pytest.raises(DataError, match=r"would delete 1 files .* such as train/dots/0001\.jpg"):
        demo.generate(root, per_class=1, seed=1)
    assert mine.exists()


def test_interrupted_it_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "demo"
    demo.generate(root, per_class=1, seed=0)
    before = digests(root)
    drawn = []

    def interrupted(pattern: str, rng: np.random.Generator) -> demo.Pixels:
        drawn.append(pattern)
        if len(drawn) == 20:
            raise KeyboardInterrupt
        return np.zeros((120, 120, 3), np.uint8)

    monkeypatch.setattr(demo, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.generate(root, per_class=2, seed=0)
    drawn.clear()
    with pytest.raises(KeyboardInterrupt):
        demo.generate(tmp_path / "second", per_class=2, seed=0)
    assert digests(root) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [".demo.lock", ".second.lock", "demo"]


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"data\.root=.*file/demo: the demo images cannot be written there"):
        demo.generate(tmp_path / "file" / "demo", per_class=1, seed=0)


def test_a_link_keeps_pointing_to_the_images(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "demo")
    for seed in (0, 1):
        demo.generate(tmp_path / "link", per_class=1, seed=seed)
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "disk" / "demo" / "demo.json").read_text(encoding="utf-8"))["seed"] == 1
