"""CPU time from the bytes of a JPEG to a 224 x 224 RGB array: ours against the usual ways, one core.

    python -m benchmarks.decode [--photos DIR] [--count 40] [--rounds 7]

Photos are taken from DIR (any folder tree of images) or drawn (shapes and noise), brought to each
size and saved as JPEG of quality 90. Every way runs on every photo in turn, `rounds` times; a photo
counts with its best time (CPU time of this process, so other load disturbs little). `diff` is the
mean difference to the plain Pillow way, in 1/255.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image, ImageDraw, ImageFilter

from graft import images
from graft.inputs import InputSpec

SIZES = ((500, 375), (1000, 750), (4032, 3024))
SPEC = InputSpec()
SIDE = (SPEC.image_size, SPEC.image_size)

Way = Callable[[bytes], images.Pixels]


def drawn_photo(seed: int) -> Image.Image:
    """A 500 x 375 picture of 40 soft-edged shapes under noise of sigma 4, as a stand-in for a photo."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (500, 375), tuple(int(value) for value in rng.integers(0, 256, 3)))
    pen = ImageDraw.Draw(picture)
    for _ in range(40):
        x, y, w, h = (int(value) for value in rng.integers((-50, -50, 10, 10), (500, 375, 200, 200)))
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x, y, x + w, y + h), fill=tuple(int(value) for value in rng.integers(0, 256, 3)))
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.5)), dtype=np.float32)
    return Image.fromarray(np.clip(soft + rng.normal(0, 4, soft.shape), 0, 255).astype(np.uint8))


def load_photos(folder: Path | None, count: int) -> list[Image.Image]:
    """`count` pictures, spread evenly over the folder's files, or drawn."""
    if folder is None:
        return [drawn_photo(seed) for seed in range(count)]
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise SystemExit(f"--photos {folder}: no .jpg, .jpeg or .png in it")
    return [Image.open(path).convert("RGB") for path in files[:: max(1, len(files) // count)][:count]]


def as_jpeg(picture: Image.Image, size: tuple[int, int]) -> bytes:
    """The picture at `size`, as a JPEG of quality 90."""
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def view_box(width: int, height: int) -> images.Box:
    """The box that all ways render, as left, top, right, bottom."""
    view = images.plain_view(width, height, SPEC)
    return view.left, view.top, view.right, view.bottom


def decode_reduced(data: bytes) -> tuple[images.Pixels, tuple[int, int]]:
    """Pixels at the smallest of 1, 1/2, 1/4, 1/8 that holds the view; the full width and height."""
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    factor = next((factor for factor in (8, 4, 2) if min(width, height) >= factor * SPEC.resize), 1)
    pixels = simplejpeg.decode_jpeg(data, min_width=-(-width // factor), min_height=-(-height // factor))
    return pixels, (width, height)


def by_pillow(data: bytes) -> images.Pixels:
    """What most code does: open, convert, resize."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    return np.array(picture.resize(SIDE, Image.Resampling.BILINEAR, box=view_box(*picture.size)))


def by_draft(data: bytes) -> images.Pixels:
    """Pillow with its decoder told that a smaller picture will do."""
    picture = Image.open(io.BytesIO(data))
    full = picture.size
    picture.draft("RGB", SIDE)
    left, top, right, bottom = view_box(*full)
    x, y = full[0] / picture.width, full[1] / picture.height
    box = (left / x, top / y, right / x, bottom / y)
    return np.array(picture.convert("RGB").resize(SIDE, Image.Resampling.BILINEAR, box=box))


def by_simplejpeg(data: bytes) -> images.Pixels:
    """Simplejpeg at reduced scale, then Pillow's antialiased resize: ours before OpenCV."""
    pixels, (width, height) = decode_reduced(data)
    picture = Image.fromarray(pixels)
    x, y = picture.width / width, picture.height / height
    left, top, right, bottom = view_box(width, height)
    return np.array(picture.resize(SIDE, Image.Resampling.BILINEAR, box=(left * x, top * y, right * x, bottom * y)))


def by_cv2_resize(interpolation: int) -> Way:
    """Simplejpeg at reduced scale, then OpenCV's resize of whole pixels: ours with another filter."""

    def resize(data: bytes) -> images.Pixels:
        pixels, (width, height) = decode_reduced(data)
        x, y = pixels.shape[1] / width, pixels.shape[0] / height
        left, top, right, bottom = view_box(width, height)
        view = pixels[round(top * y) : round(bottom * y), round(left * x) : round(right * x)]
        return np.asarray(cv2.resize(view, SIDE, interpolation=interpolation), dtype=np.uint8)

    return resize


def by_graft(data: bytes) -> images.Pixels:
    """Ours."""
    return images.render(data, SPEC).pixels


def torchvision_way() -> Way:
    """torchvision.io.decode_jpeg and its antialiased uint8 resize, one thread."""
    import torch
    from torchvision.io import decode_jpeg
    from torchvision.transforms.v2 import functional

    torch.set_num_threads(1)

    def by_torchvision(data: bytes) -> images.Pixels:
        picture = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        resized = functional.resize(picture, [SPEC.resize], antialias=True)
        cropped = functional.center_crop(resized, [SPEC.image_size])
        return np.ascontiguousarray(cropped.permute(1, 2, 0).numpy())

    return by_torchvision


def opencv_way() -> Way:
    """OpenCV's reduced decoding and INTER_AREA."""
    reduced = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}

    def by_opencv(data: bytes) -> images.Pixels:
        short = min(simplejpeg.decode_jpeg_header(data)[:2])
        factor = next((factor for factor in (8, 4, 2) if short >= factor * SPEC.resize), 1)
        picture = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), reduced.get(factor, cv2.IMREAD_COLOR)))
        left, top, right, bottom = (round(edge) for edge in view_box(picture.shape[1], picture.shape[0]))
        square = cv2.resize(picture[top:bottom, left:right], SIDE, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.cvtColor(square, cv2.COLOR_BGR2RGB), dtype=np.uint8)

    return by_opencv


def installed_ways() -> dict[str, Way]:
    """Name to way; the plain Pillow one comes first."""
    return {
        "pillow": by_pillow,
        "pillow draft": by_draft,
        "torchvision": torchvision_way(),
        "opencv": opencv_way(),
        "simplejpeg, pillow": by_simplejpeg,
        "same, INTER_AREA": by_cv2_resize(cv2.INTER_AREA),
        "same, LINEAR_EXACT": by_cv2_resize(cv2.INTER_LINEAR_EXACT),
        "graft": by_graft,
    }


def best_times(ways: dict[str, Way], photos: list[bytes], rounds: int) -> dict[str, float]:
    """Mean over the photos of the best CPU milliseconds of each way."""
    best = {name: np.full(len(photos), np.inf) for name in ways}
    kept: list[images.Pixels] = []  # as a loader keeps a batch; else the heap shrinks between images
    order = np.random.default_rng(0)  # what ran before leaves its traces in the processor's caches
    for _ in range(rounds):
        for index, data in enumerate(photos):
            for name in order.permutation(list(ways)):
                start = time.process_time_ns()
                kept.append(ways[name](data))
                best[name][index] = min(best[name][index], (time.process_time_ns() - start) / 1e6)
        kept = kept[-64:]
    return {name: float(times.mean()) for name, times in best.items()}


def mean_difference(way: Way, photos: list[bytes]) -> float:
    """Mean absolute difference to the plain Pillow way, in 1/255."""
    pairs = ((way(data).astype(np.int16), by_pillow(data)) for data in photos)
    return float(np.mean([np.abs(ours - reference).mean() for ours, reference in pairs]))


def main() -> None:
    """Print one table a size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, help="folder of images; default: drawn")
    parser.add_argument("--count", type=int, default=40, help="photos at the two smaller sizes; a quarter at 12 MP")
    parser.add_argument("--rounds", type=int, default=7, help="times every photo is decoded every way")
    arguments = parser.parse_args()
    ways = installed_ways()
    pictures = load_photos(arguments.photos, arguments.count)
    for size in SIZES:
        few = pictures if size[0] <= 1000 else pictures[: max(1, len(pictures) // 4)]
        photos = [as_jpeg(picture, size) for picture in few]
        times = best_times(ways, photos, arguments.rounds)
        kilobytes = sum(map(len, photos)) / len(photos) / 1e3
        print(f"\n{size[0]} x {size[1]}, {len(photos)} photos of {kilobytes:.0f} kB")
        for name, milliseconds in times.items():
            gain = times["pillow"] / milliseconds
            difference = mean_difference(ways[name], photos)
            print(f"  {name:18} {milliseconds:8.2f} ms {gain:6.1f}x   diff {difference:.2f}")


if __name__ == "__main__":
    main()
