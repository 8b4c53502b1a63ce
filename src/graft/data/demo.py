"""A toy image data set, drawn on the spot: twelve patterns told apart by shape and texture, not by colour."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from graft.errors import DataError

RECORD = "demo.json"
VERSION = 1
SPLITS = ("train", "valid", "test")
TURN = np.float32(2 * np.pi)

# Ranges of what is drawn at random. A backbone with random weights sees colour and brightness first,
# so they vary less than the pattern does.
SIDES = (120, 320)  # pixels
SCALE = 1.12
ANGLE = np.pi / 12
MOVE = 0.1  # of a side
DARK, LIGHT, TINT = (25, 60), (190, 225), 25  # grey levels, and how far each channel leaves them
DARK_SHARE = (0.3, 0.45)
SHADE, NOISE = 15, 12  # grey levels
REACH = SHADE + NOISE

Plane = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]
Pattern = Callable[[Plane, Plane, np.random.Generator], Plane]


@dataclass(frozen=True)
class Record:
    """What decides every byte of the data set; kept in `demo.json` beside the splits."""

    per_class: int
    seed: int
    version: int = VERSION
    made_by: str = "graft.data.demo"


@dataclass(frozen=True)
class Picture:
    """One file to write: where it lies, which pattern it shows and how it is stored."""

    split: str
    pattern: str
    number: int
    style: str

    @property
    def path(self) -> Path:
        """Relative to the root: SPLIT/CLASS/NNNN.jpg or .png."""
        return Path(self.split, self.pattern, f"{self.number:04d}{STYLES[self.style][0]}")


def generate(root: Path, *, per_class: int, seed: int) -> None:
    """Write root/{train,valid,test}/CLASS/NNNN.{jpg,png}, unless the same data set is there already.

    `per_class` counts the training images; valid and test have max(5, per_class // 5) of each class.
    The same arguments give the same bytes (with the same numpy and Pillow). The folder appears at
    once when it is complete; one made with other arguments is replaced.

    Raises:
        DataError: `root` exists and was not made here, or holds files that were not, or cannot be written.
    """
    root = root.resolve()
    wanted = Record(per_class=per_class, seed=seed)
    if _is_made(root, wanted):
        return
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(root.with_name(f".{root.name}.lock")):  # runs of a sweep start together
            if not _is_made(root, wanted):
                _replace(root, wanted)
    except OSError as error:
        raise DataError(f"data.root={root}: the demo images cannot be written there: {error}") from error


def _is_made(root: Path, wanted: Record) -> bool:
    """Whether `root` is what is wanted; an error where it is not ours to replace."""
    if not root.exists():
        return False
    found = _read_record(root)
    if found is None:
        raise DataError(
            f"data.root={root} exists and was not made by data=demo (it has no {RECORD} of ours), so it is left "
            f"alone; accepted: a path that does not exist yet, or an earlier demo folder"
        )
    if found == wanted:
        return True
    ours = {Path(RECORD), *(picture.path for picture in plan(found.per_class))}
    foreign = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_symlink() or not p.is_dir())
    foreign = [path for path in foreign if path not in ours]
    if foreign:
        raise DataError(
            f"data.root={root} was made with {found}, {wanted} is wanted, and replacing it would delete "
            f"{len(foreign)} files that data=demo did not make, such as {foreign[0]}; accepted: another data.root"
        )
    return False


def _read_record(root: Path) -> Record | None:
    """The record in a folder, None where there is none of ours."""
    try:
        plain = json.loads((root / RECORD).read_text(encoding="utf-8"))
        found = Record(**plain)
    except (OSError, ValueError, TypeError):
        return None
    return found if found.made_by == Record.made_by else None


def _replace(root: Path, wanted: Record) -> None:
    """Put new images in the place of `root` at once; what was there goes with the temporary folder."""
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as folder:
        # One level down: the temporary folder itself is readable by its owner alone.
        new = Path(folder, "new")
        _write(new, wanted)
        if root.exists():
            root.rename(Path(folder, "old"))
        new.rename(root)


def _write(root: Path, record: Record) -> None:
    for picture in plan(record.per_class):
        path = root / picture.path
        path.parent.mkdir(parents=True, exist_ok=True)
        place = (SPLITS.index(picture.split), list(PATTERNS).index(picture.pattern), picture.number)
        rng = np.random.default_rng((record.seed, *place))
        STYLES[picture.style][1](draw(picture.pattern, rng), path, rng)
    (root / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")


def plan(per_class: int) -> Iterator[Picture]:
    """Every file of the data set, in order; an eighth of each split is in an unusual style."""
    for split in SPLITS:
        count = per_class if split == "train" else max(5, per_class // 5)
        order = ((pattern, number) for pattern in PATTERNS for number in range(count))
        for index, (pattern, number) in enumerate(order):
            yield Picture(split, pattern, number, _style(index))


def _style(index: int) -> str:
    if index % 8 == 0:
        return UNUSUAL[index // 8 % len(UNUSUAL)]
    return "png" if index % 8 == 4 else "jpeg"


# Patterns: u, v are float32 [H, W]: rotated coordinates in periods of the pattern, zero near the centre.
# A pattern is a field; its lowest values are drawn in the dark colour.


def _fold(x: Plane) -> Plane:
    """The distance to the nearest integer: 0 to 0.5 in every cell."""
    distance: Plane = np.abs(x - np.rint(x))
    return distance


def _stripes(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    return _fold(u)


def _checks(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    field: Plane = np.cos(TURN / 2 * u) * np.cos(TURN / 2 * v)
    return field


def _dots(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    return np.hypot(_fold(u), _fold(v))


def _rings(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    return _fold(np.hypot(u, v))


def _crosses(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    x, y = _fold(u), _fold(v)
    return np.maximum(np.minimum(x, y), np.maximum(x, y) - 0.3)


def _triangles(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    x, y = _fold(u), v - np.rint(v)
    return np.maximum(-y, 0.866 * x + 0.5 * y)


def _stars(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    # The distance from the centre across the nearest edge of a pentagram.
    field: Plane = np.hypot(u, v) * np.cos(TURN / 5 * (_fold(5 * np.arctan2(v, u) / TURN) - 1))
    return field


def _waves(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    return _fold(v + 0.4 * np.sin(TURN / 2 * u))


def _blobs(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    field = np.zeros_like(u)
    for turn, phase in rng.uniform(0, TURN, size=(9, 2)).astype(np.float32):
        field += np.cos(TURN * (u * np.cos(turn) + v * np.sin(turn)) + phase)
    return field


def _grid(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    return np.minimum(_fold(u), _fold(v))


def _spirals(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    return _fold(np.hypot(u, v) + 5 * np.arctan2(v, u) / TURN)


def _grain(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    cells = rng.random((64, 64), dtype=np.float32)
    return cells[np.floor(u).astype(np.intp) % 64, np.floor(v).astype(np.intp) % 64]


# The number is how many periods the short side shows.
PATTERNS: dict[str, tuple[Pattern, float]] = {
    "blobs": (_blobs, 4),
    "checks": (_checks, 10),
    "crosses": (_crosses, 5),
    "dots": (_dots, 8),
    "grain": (_grain, 28),
    "grid": (_grid, 10),
    "rings": (_rings, 7),
    "spirals": (_spirals, 5),
    "stars": (_stars, 3),
    "stripes": (_stripes, 10),
    "triangles": (_triangles, 6),
    "waves": (_waves, 7),
}


def draw(pattern: str, rng: np.random.Generator) -> Pixels:
    """One upright image, uint8 [H, W, 3], sides of 120 to 320 pixels; all but the pattern is random."""
    width, height = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, size=2))
    field_of, periods = PATTERNS[pattern]
    field = field_of(*_coordinates(width, height, periods, rng), rng)
    # The share of dark pixels is drawn apart from the pattern: it would tell the class without any shape.
    dark = field < np.quantile(field[::3, ::3], rng.uniform(*DARK_SHARE))
    ramp = np.rint(np.linspace(-SHADE, SHADE, width) * rng.uniform(-1, 1)).astype(np.intp)
    noise = rng.integers(-NOISE, NOISE + 1, size=(height, width), dtype=np.int8)
    return _shades(rng).take(np.where(dark, REACH, 3 * REACH + 1) + ramp + noise, axis=0)


def _coordinates(width: int, height: int, periods: float, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Pixel positions in periods of the pattern: rotated, scaled and moved at random."""
    period = min(width, height) / periods * rng.uniform(1 / SCALE, SCALE)
    angle = rng.uniform(-ANGLE, ANGLE)
    x0, y0 = rng.uniform(0.5 - MOVE, 0.5 + MOVE, size=2) * (width, height)
    x = ((np.arange(width) - x0) / period).astype(np.float32)[None, :]
    y = ((np.arange(height) - y0) / period).astype(np.float32)[:, None]
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _shades(rng: np.random.Generator) -> Pixels:
    """A dark and a light colour of any hue: uint8 [2 (2 REACH + 1), 3], each from REACH darker to lighter."""
    levels = np.array([rng.uniform(*DARK), rng.uniform(*LIGHT)])
    colours = levels[:, None] + rng.uniform(-TINT, TINT, size=(2, 3))
    shades = colours[:, None, :] + np.arange(-REACH, REACH + 1)[:, None]
    return np.clip(shades, 0, 255).astype(np.uint8).reshape(-1, 3)


# Styles: how the pixels are stored.


def _save_jpeg(pixels: Pixels, path: Path, rng: np.random.Generator) -> None:
    Image.fromarray(pixels).save(path, quality=int(rng.integers(75, 96)))


def _save_png(pixels: Pixels, path: Path, rng: np.random.Generator) -> None:
    Image.fromarray(pixels).save(path, compress_level=1)


def _save_grey(pixels: Pixels, path: Path, rng: np.random.Generator) -> None:
    Image.fromarray(pixels).convert("L").save(path, quality=90)


def _save_cmyk(pixels: Pixels, path: Path, rng: np.random.Generator) -> None:
    Image.fromarray(pixels).convert("CMYK").save(path, quality=90)


def _save_palette(pixels: Pixels, path: Path, rng: np.random.Generator) -> None:
    Image.fromarray(pixels).quantize(32).save(path, compress_level=1)


def _save_deep(pixels: Pixels, path: Path, rng: np.random.Generator) -> None:
    grey = np.asarray(Image.fromarray(pixels).convert("L")).astype(np.uint16)
    Image.fromarray(grey * 257).save(path, compress_level=1)


def _save_alpha(pixels: Pixels, path: Path, rng: np.random.Generator) -> None:
    height, width, _ = pixels.shape
    alpha = np.broadcast_to(np.linspace(160, 255, width).astype(np.uint8), (height, width))
    Image.fromarray(np.dstack([pixels, alpha])).save(path, compress_level=1)


def _save_turned(pixels: Pixels, path: Path, rng: np.random.Generator) -> None:
    orientation, quarters = ((3, 2), (6, 1), (8, 3))[rng.integers(3)]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels, quarters))).save(path, quality=90, exif=exif)


STYLES: dict[str, tuple[str, Callable[[Pixels, Path, np.random.Generator], None]]] = {
    "jpeg": (".jpg", _save_jpeg),
    "png": (".png", _save_png),
    "grey": (".jpg", _save_grey),
    "cmyk": (".jpg", _save_cmyk),
    "palette": (".png", _save_palette),
    "deep": (".png", _save_deep),
    "alpha": (".png", _save_alpha),
    "turned": (".jpg", _save_turned),
}
UNUSUAL = ("turned", "cmyk", "deep", "grey", "alpha", "palette")
