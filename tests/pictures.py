"""Tiny photos for tests: class folders that a small network learns, and files damaged on purpose."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Far apart, so that the mean colour alone tells the first six classes from each other.
COLOURS = ((200, 60, 60), (60, 180, 80), (60, 80, 200), (200, 190, 60), (170, 70, 190), (70, 180, 190))


def draw_folder(
    root: Path,
    *,
    classes: int = 3,
    train: int = 12,
    valid: int = 4,
    test: int = 4,
    size: int = 64,
    seed: int = 0,
) -> Path:
    """Write root/{train,valid,test}/class_K/NNN.{jpg,png}, every third a PNG; returns `root`.

    A class is a mean colour and the direction of its stripes. All photos differ. The counts are per
    class; a split of none is left out.
    """
    for split, count in (("train", train), ("valid", valid), ("test", test)):
        for label in range(classes):
            for number in range(count):
                rng = np.random.default_rng((seed, ("train", "valid", "test").index(split), label, number))
                suffix = "png" if number % 3 == 2 else "jpg"
                write(root / split / f"class_{label}" / f"{number:03d}.{suffix}", draw(label, rng, size))
    return root


def draw(label: int, rng: np.random.Generator, size: int = 64) -> NDArray[np.uint8]:
    """One photo of a class, uint8 [size, size, 3]: its colour, its stripes and noise."""
    down, across = np.mgrid[:size, :size] / size
    angle = np.pi * label / 6 + rng.normal(0, 0.1)
    stripes = np.sin(2 * np.pi * (4 * (across * np.cos(angle) + down * np.sin(angle)) + rng.random()))
    colour = np.array(COLOURS[label % len(COLOURS)]) + rng.normal(0, 12, 3)
    pixels = colour + 35 * stripes[:, :, None] + rng.normal(0, 8, (size, size, 3))
    drawn: NDArray[np.uint8] = pixels.clip(0, 255).astype(np.uint8)
    return drawn


def encode(pixels: NDArray[np.uint8], format: str = "JPEG") -> bytes:
    """The bytes of a JPEG (quality 90) or of another format of Pillow's."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **({"quality": 90} if format == "JPEG" else {}))
    return buffer.getvalue()


def write(path: Path, pixels: NDArray[np.uint8]) -> Path:
    """Write a photo in the format that its suffix names, with the folders above it; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(pixels, "PNG" if path.suffix == ".png" else "JPEG"))
    return path


def truncate(path: Path, share: float = 0.6) -> Path:
    """Cut the end of a photo off; at `share` its upper part can still be decoded."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def spoil(path: Path) -> Path:
    """Make a photo undecodable, with bytes that no other one has."""
    path.write_text(f"this is no photo: {'/'.join(path.parts[-3:])}")
    return path
