"""graft.images: every format, mode and orientation against hand-built pictures; damage; limits."""

from __future__ import annotations

import io
import os
import platform
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image

from graft import images
from graft.errors import ConfigError, DataError
from graft.images import ImageError, View, plain_view, render
from graft.inputs import InputSpec
from tests.conftest import REAL_DATA

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
SQUASH = InputSpec(image_size=16, fit="squash")
# What is lossy gets no chroma subsampling, so that colours are known to the edge.
ORIENTED: dict[str, dict[str, Any]] = {
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "mpo": {"format": "MPO", "quality": 95, "subsampling": 0},
    "webp": {"format": "WEBP", "lossless": True},
    "png": {"format": "PNG"},
    "tiff": {"format": "TIFF"},
    "tiff lzw": {"format": "TIFF", "compression": "tiff_lzw"},
}

Array = npt.NDArray[Any]


def encode(picture: Image.Image | Array, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def orientation_tag(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


def quadrants(width: int, height: int) -> Array:
    """Red and green above, blue and white below."""
    picture = np.full((height, width, 3), WHITE, np.uint8)
    picture[: height // 2, : width // 2] = RED
    picture[: height // 2, width // 2 :] = GREEN
    picture[height // 2 :, : width // 2] = BLUE
    return picture


def smooth(width: int, height: int) -> Array:
    """Slow waves, different in each channel."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = (np.sin(x / 37 + y / 91), np.cos(x / 53 - y / 29), np.sin((x + y) / 71))
    return np.stack([127.5 + 120 * wave for wave in waves], -1).astype(np.uint8)


def photo_like(width: int, height: int, seed: int = 0) -> Array:
    """Soft-edged blocks of colour under noise, with detail down to a few pixels."""
    rng = np.random.default_rng(seed)
    layers = np.zeros((height, width, 3))
    for cells, strength in ((6, 0.5), (24, 0.3), (96, 0.2)):
        grid = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layers += strength * np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(layers + rng.normal(0, 3, layers.shape), 0, 255).astype(np.uint8)


def corners(pixels: Array) -> list[tuple[int, ...]]:
    """The middles of the four quadrants, in reading order."""
    low, high = pixels.shape[0] // 4, 3 * pixels.shape[0] // 4
    return [tuple(int(v) for v in pixels[y, x]) for y, x in ((low, low), (low, high), (high, low), (high, high))]


def assert_colours(pixels: Array, expected: list[tuple[int, int, int]], tolerance: int) -> None:
    difference = np.abs(np.array(corners(pixels)) - np.array(expected)).max()
    assert difference <= tolerance, f"{corners(pixels)} instead of {expected}"


def mean_difference(left: Array, right: Array) -> float:
    return float(np.abs(left.astype(int) - right.astype(int)).mean())


# What a camera stores for an upright picture, from the EXIF table of where row 0 and column 0 lie.
STORED: dict[int, Callable[[Array], Array]] = {
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.swapaxes(0, 1),  # left, top
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda upright: upright[::-1].swapaxes(0, 1),  # left, bottom
}


def whole_of(width: int, height: int) -> Callable[[int, int], View]:
    """Chooses the whole photo, and insists on its size."""

    def choose(w: int, h: int) -> View:
        assert (w, h) == (width, height)
        return View(0, 0, w, h)

    return choose


def fixed(left: float, top: float, right: float, bottom: float, flip: bool = False) -> Callable[[int, int], View]:
    return lambda w, h: View(left, top, right, bottom, flip)


def random_views(count: int, width: int, height: int, seed: int) -> list[Callable[[int, int], View]]:
    rng = np.random.default_rng(seed)
    views = []
    for _ in range(count):
        w, h = rng.uniform((5, 5), (width, height)).tolist()
        left, top = rng.uniform((0, 0), (width - w, height - h)).tolist()
        views.append(fixed(left, top, left + w, top + h, bool(rng.integers(2))))
    return views


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ORIENTED)
    def test_all_formats_come_upright(self, kind: str, orientation: int) -> None:
        stored = np.ascontiguousarray(STORED[orientation](quadrants(96, 64)))
        data = encode(stored, exif=orientation_tag(orientation), **ORIENTED[kind])
        rendered = render(data, SQUASH, whole_of(96, 64))
        assert_colours(rendered.pixels, [RED, GREEN, BLUE, WHITE], 6)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("box", [(0, 0, 300, 200), (300, 0, 600, 200), (0, 200, 300, 400)])
    def test_view_is_in_upright_pixels_also_at_reduced_scale(
        self, orientation: int, box: tuple[int, int, int, int]
    ) -> None:
        stored = np.ascontiguousarray(STORED[orientation](quadrants(600, 400)))
        data = encode(stored, "JPEG", exif=orientation_tag(orientation), quality=95)
        colour = {(0, 0): RED, (300, 0): GREEN, (0, 200): BLUE}[box[:2]]
        inside = (box[0] + 16, box[1] + 16, box[2] - 16, box[3] - 16)  # the colours mix at the seams
        assert_colours(render(data, SQUASH, fixed(*inside)).pixels, [colour] * 4, 4)

    @pytest.mark.parametrize("orientation", range(2, 9))
    def test_any_view_equals_that_of_the_upright_file(self, orientation: int) -> None:
        upright = photo_like(90, 70)
        stored = np.ascontiguousarray(STORED[orientation](upright))
        for choose in random_views(4, 90, 70, seed=orientation):
            ours = render(encode(stored, "PNG", exif=orientation_tag(orientation)), SQUASH, choose).pixels
            reference = render(encode(upright, "PNG"), SQUASH, choose).pixels
            assert np.abs(ours.astype(int) - reference).max() <= 1  # rows and columns round in turn

    @pytest.mark.parametrize("exif", [orientation_tag(0), orientation_tag(9), b"Exif\0\0garbage!!"])
    def test_senseless_exif_is_no_orientation(self, exif: bytes) -> None:
        data = encode(quadrants(64, 64), "PNG", exif=exif)
        assert_colours(render(data, SQUASH).pixels, [RED, GREEN, BLUE, WHITE], 0)

    def test_flip_mirrors_the_view(self) -> None:
        data = encode(photo_like(80, 60), "PNG")
        plain = render(data, SQUASH, fixed(3, 5, 70, 50))
        flipped = render(data, SQUASH, fixed(3, 5, 70, 50, flip=True))
        assert np.array_equal(flipped.pixels, plain.pixels[:, ::-1])


def flat(mode: str, value: Any) -> Image.Image:
    return Image.new(mode, (32, 24), value)


def palette_image(**_: Any) -> Image.Image:
    picture = flat("P", 1)
    picture.putpalette([0, 0, 0, 10, 200, 30])
    return picture


def png(depth: int, colour_type: int, samples: bytes) -> bytes:
    """A 4 x 4 PNG built by hand, all pixels equal to `samples`: Pillow does not write every kind."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 4, 4, depth, colour_type, 0, 0, 0)
    rows = zlib.compress((b"\0" + samples * 4) * 4)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg_without_adobe_marker(picture: Image.Image) -> bytes:
    """The same JPEG less its APP14 segment."""
    data = encode(picture, "JPEG", quality=95)
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]


def sixteen_bit(value: int) -> Image.Image:
    return Image.fromarray(np.full((24, 32), value, np.uint16))


# libjpeg-turbo stores CMYK as YCCK; ink is inverted, so 0 is full.
YCCK = simplejpeg.encode_jpeg(np.full((24, 32, 4), (255, 0, 0, 255), np.uint8), quality=95, colorspace="CMYK")

COLOURS: dict[str, tuple[bytes, tuple[int, int, int], int]] = {
    "L png": (encode(flat("L", 77), "PNG"), (77, 77, 77), 0),
    "L jpeg": (encode(flat("L", 77), "JPEG"), (77, 77, 77), 0),
    "1 png": (encode(flat("1", 1), "PNG"), WHITE, 0),
    "1 tiff": (encode(flat("1", 0), "TIFF", compression="group4"), (0, 0, 0), 0),
    "LA over white": (encode(flat("LA", (0, 128)), "PNG"), (127, 127, 127), 0),
    "RGBA over white": (encode(flat("RGBA", (255, 0, 0, 51)), "PNG"), (255, 204, 204), 0),
    "RGBA webp": (encode(flat("RGBA", (255, 0, 0, 51)), "WEBP", lossless=True), (255, 204, 204), 0),
    "RGBA all clear": (encode(flat("RGBA", (9, 9, 9, 0)), "PNG"), WHITE, 0),
    "RGB with a clear colour": (encode(flat("RGB", (1, 2, 3)), "PNG", transparency=(1, 2, 3)), WHITE, 0),
    "L with a clear value": (encode(flat("L", 5), "PNG", transparency=5), WHITE, 0),
    "P": (encode(palette_image(), "PNG"), (10, 200, 30), 0),
    "P with another clear index": (encode(palette_image(), "PNG", transparency=0), (10, 200, 30), 0),
    "P with a clear index": (encode(palette_image(), "PNG", transparency=1), WHITE, 0),
    "P with alpha bytes": (encode(palette_image(), "PNG", transparency=b"\xff\x33"), (206, 244, 210), 0),
    "P gif": (encode(palette_image(), "GIF"), (10, 200, 30), 0),
    "P gif clear": (encode(palette_image(), "GIF", transparency=1), WHITE, 0),
    "P bmp": (encode(palette_image(), "BMP"), (10, 200, 30), 0),
    "RGB bmp": (encode(flat("RGB", (10, 200, 30)), "BMP"), (10, 200, 30), 0),
    "CMYK tiff": (encode(flat("CMYK", (0, 255, 255, 0)), "TIFF"), RED, 0),
    "CMYK jpeg of Adobe": (encode(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=95), RED, 2),
    "CMYK jpeg without marker": (jpeg_without_adobe_marker(flat("CMYK", (0, 255, 255, 0))), RED, 2),
    "YCCK jpeg": (YCCK, RED, 2),
    "YCbCr tiff": (encode(flat("YCbCr", (76, 85, 255)), "TIFF"), (254, 0, 0), 2),
    "RGB jpeg without YCbCr": (encode(flat("RGB", (10, 200, 30)), "JPEG", keep_rgb=True), (10, 200, 30), 2),
    "progressive jpeg": (encode(flat("RGB", (10, 200, 30)), "JPEG", progressive=True), (10, 200, 30), 2),
    "I;16 png": (encode(sixteen_bit(40000), "PNG"), (155, 155, 155), 0),
    "I;16 png white": (encode(sixteen_bit(65535), "PNG"), WHITE, 0),
    "I;16 tiff": (encode(sixteen_bit(40000), "TIFF"), (155, 155, 155), 0),
    "I;16B tiff": (encode(flat("I;16B", 40000), "TIFF"), (155, 155, 155), 0),
    "I tiff": (encode(flat("I", 40000), "TIFF"), (155, 155, 155), 0),
    "I tiff beyond 16 bits": (encode(flat("I", 70000), "TIFF"), WHITE, 0),
    "I tiff negative": (encode(flat("I", -5), "TIFF"), (0, 0, 0), 0),
    "F tiff in 0..1": (encode(flat("F", 0.5), "TIFF"), (128, 128, 128), 0),
    "F tiff in 0..255": (encode(flat("F", 77.0), "TIFF"), (77, 77, 77), 0),
    "F tiff in 0..65535": (encode(flat("F", 40000.0), "TIFF"), (156, 156, 156), 0),
    "F tiff nan": (encode(flat("F", float("nan")), "TIFF"), (0, 0, 0), 0),
    "RGB png of 16 bits": (png(16, 2, struct.pack(">3H", 65535, 0x8000, 0)), (255, 128, 0), 0),
    "RGBA png of 16 bits": (png(16, 6, struct.pack(">4H", 0, 0, 0, 0x3333)), (204, 204, 204), 0),
    "LA png of 16 bits": (png(16, 4, struct.pack(">2H", 0, 0x3333)), (204, 204, 204), 0),
}


class TestColour:
    @pytest.mark.parametrize("name", COLOURS)
    def test_mode(self, name: str) -> None:
        data, colour, tolerance = COLOURS[name]
        rendered = render(data, SQUASH)
        assert not rendered.truncated
        difference = np.abs(rendered.pixels.astype(int) - np.array(colour))
        assert difference.max() <= tolerance, f"{rendered.pixels[8, 8]} instead of {colour}"

    @pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
    def test_first_frame_of_several(self, format: str) -> None:
        data = encode(flat("RGB", RED), format, save_all=True, append_images=[flat("RGB", BLUE)] * 2)
        assert np.abs(render(data, SQUASH).pixels.astype(int) - RED).max() <= 3

    def test_wide_numbers_keep_their_gradient(self) -> None:
        ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (256, 1))
        pixels = render(encode(ramp, "PNG"), InputSpec(image_size=256, fit="squash")).pixels
        assert np.array_equal(pixels[0, :, 0], np.arange(256))

    def test_result_is_writable_and_contiguous(self) -> None:
        for flip in (False, True):
            pixels = render(encode(quadrants(40, 40), "PNG"), SQUASH, fixed(0, 0, 40, 40, flip)).pixels
            assert pixels.dtype == np.uint8
            assert pixels.shape == (16, 16, 3)
            assert pixels.flags.writeable
            assert pixels.flags.c_contiguous


def by_torchvision(picture: Image.Image, spec: InputSpec) -> Array:
    from torchvision.transforms import CenterCrop, Compose, Resize

    return np.asarray(Compose([Resize(spec.resize), CenterCrop(spec.image_size)])(picture))


class TestView:
    SIZES = ((500, 375), (375, 500), (301, 299), (224, 224), (97, 1003), (60, 41))
    SPECS = (InputSpec(), InputSpec(resize=256), InputSpec(image_size=63, resize=70))

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("spec", SPECS)
    def test_plain_view_is_the_pre_image_of_torchvisions(self, size: tuple[int, int], spec: InputSpec) -> None:
        picture, view = Image.fromarray(smooth(*size)), plain_view(*size, spec)
        side, box = (spec.image_size, spec.image_size), (view.left, view.top, view.right, view.bottom)
        ours = np.asarray(picture.resize(side, Image.Resampling.BILINEAR, box=box))
        reference = by_torchvision(picture, spec)
        assert mean_difference(ours, reference) <= 0.05
        assert np.abs(ours.astype(int) - reference).max() <= 2  # ties, and Pillow keeps the box in float32

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("spec", SPECS)
    def test_render_stays_near_torchvision(self, size: tuple[int, int], spec: InputSpec) -> None:
        picture = Image.fromarray(smooth(*size))
        ours, reference = render(encode(picture, "PNG"), spec).pixels, by_torchvision(picture, spec)
        assert mean_difference(ours, reference) <= 0.6
        assert np.abs(ours.astype(int) - reference).max() <= 4  # edges are rounded: half a pixel of the photo

    @pytest.mark.parametrize(("size", "bound"), [((500, 375), 0.7), ((1000, 750), 1.3), ((2016, 1512), 2.0)])
    def test_jpeg_stays_near_torchvision(self, size: tuple[int, int], bound: float) -> None:
        data = encode(smooth(*size), "JPEG", quality=90)
        spec = InputSpec(resize=256)
        reference = by_torchvision(Image.open(io.BytesIO(data)).convert("RGB"), spec)
        assert mean_difference(render(data, spec).pixels, reference) <= bound

    @pytest.mark.real_data
    @pytest.mark.parametrize(("side", "bound"), [(224, 0.0), (160, 2.0), (120, 3.0)])
    def test_real_photos_stay_near_torchvision(self, side: int, bound: float) -> None:
        spec = InputSpec(image_size=side, resize=side)
        files = sorted((REAL_DATA / "dogs" / "valid").rglob("*.jpg"))[::40]
        pairs = ((render(file.read_bytes(), spec).pixels, Image.open(file).convert("RGB")) for file in files)
        assert np.mean([mean_difference(ours, by_torchvision(picture, spec)) for ours, picture in pairs]) <= bound

    def test_known_boxes(self) -> None:
        assert plain_view(448, 448, InputSpec(resize=256)) == View(28, 28, 420, 420)
        assert plain_view(448, 224, InputSpec()) == View(112, 0, 336, 224)
        assert plain_view(500, 375, InputSpec(fit="squash")) == View(0, 0, 500, 375)

    def test_squash_shows_the_whole_photo(self) -> None:
        pixels = render(encode(quadrants(200, 50), "PNG"), SQUASH).pixels
        assert_colours(pixels, [RED, GREEN, BLUE, WHITE], 0)

    def test_edges_a_rounding_error_outside_are_clamped(self) -> None:
        data = encode(quadrants(40, 40), "PNG")
        outside = render(data, SQUASH, fixed(-1e-9, -1e-9, 40 + 1e-9, 40 + 1e-9))
        assert np.array_equal(outside.pixels, render(data, SQUASH).pixels)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"fit": "pad"}, "model.fit='pad': accepted are crop and squash"),
            ({"image_size": 0}, "model.image_size=0: must be at least 1"),
            ({"resize": 200}, "model.resize=200: must be at least image_size=224"),
        ],
    )
    def test_spec_refuses(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            InputSpec(**arguments)
        assert str(caught.value) == message


def bilinear(pixels: Array, side: int) -> Array:
    """Between the two nearest pixel centres each way, the edges repeated."""
    for axis in (0, 1):
        length = pixels.shape[axis]
        at = np.clip((np.arange(side) + 0.5) * length / side - 0.5, 0, length - 1)
        low = at.astype(int)
        weight = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        pixels = pixels.take(low, axis) * (1 - weight) + pixels.take(np.minimum(low + 1, length - 1), axis) * weight
    return pixels


class TestResize:
    @pytest.mark.parametrize("box", [(0, 0, 90, 70), (7, 3, 38, 60), (10, 20, 17, 25), (0, 0, 32, 32), (89, 0, 90, 70)])
    def test_below_two_to_one_is_bilinear(self, box: tuple[int, int, int, int]) -> None:
        picture = photo_like(90, 70)
        ours = render(encode(picture, "PNG"), InputSpec(image_size=48, fit="squash"), fixed(*box)).pixels
        left, top, right, bottom = box
        assert np.abs(ours - bilinear(picture[top:bottom, left:right], 48)).max() <= 1

    @pytest.mark.parametrize(("across", "down"), [(2, 2), (3, 5), (8, 1), (1, 4)])
    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_from_two_to_one_on_every_pixel_counts(self, across: int, down: int, mode: str) -> None:
        picture = np.asarray(Image.fromarray(photo_like(16 * across, 16 * down)).convert(mode))
        blocks = picture.reshape(16, down, 16, across, -1).mean((1, 3))
        assert np.abs(render(encode(picture, "PNG"), SQUASH).pixels - blocks).max() <= 1

    def test_smaller_across_while_larger_down(self) -> None:
        stripes = np.zeros((5, 160, 3), np.uint8)
        stripes[:, ::10] = 255  # one column of each ten that become one pixel
        assert np.abs(render(encode(stripes, "PNG"), SQUASH).pixels - 25.5).max() <= 1

    def test_edges_are_rounded_to_whole_pixels(self) -> None:
        data = encode(photo_like(90, 70), "PNG")
        ours, whole = (render(data, SQUASH, fixed(*box)).pixels for box in ((9.6, 4.4, 50.4, 59.6), (10, 4, 50, 60)))
        assert np.array_equal(ours, whole)

    @pytest.mark.parametrize(("box", "x", "y"), [((3.2, 5.1, 3.4, 5.3), 3, 5), ((89.8, 69.9, 90, 70), 89, 69)])
    def test_less_than_a_pixel_is_that_pixel(self, box: tuple[float, float, float, float], x: int, y: int) -> None:
        picture = photo_like(90, 70)
        pixels = render(encode(picture, "PNG"), SQUASH, fixed(*box)).pixels
        assert np.array_equal(pixels, np.broadcast_to(picture[y, x], (16, 16, 3)))

    def test_opencvs_settings_are_left_alone(self) -> None:
        code = "import cv2; n = cv2.getNumThreads(); import graft.images; print(cv2.getNumThreads() == n)"
        assert run_alone(code) == "True"


class TestReducedScale:
    @pytest.mark.parametrize(
        ("size", "decoded"),
        [
            ((447, 447), (447, 447)),
            ((448, 448), (224, 224)),
            ((1001, 449), (501, 225)),
            ((895, 1100), (448, 550)),
            ((896, 899), (224, 225)),
            ((1792, 1793), (224, 225)),
        ],
    )
    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_smallest_power_of_two_that_holds_the_view(
        self, size: tuple[int, int], decoded: tuple[int, int], mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shapes: list[tuple[int, ...]] = []

        def spy(*arguments: Any, **options: Any) -> Array:
            pixels: Array = decode(*arguments, **options)
            shapes.append(pixels.shape)
            return pixels

        decode = simplejpeg.decode_jpeg
        monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
        render(encode(Image.new(mode, size), "JPEG"), InputSpec())
        assert shapes == [(decoded[1], decoded[0], len(mode))]
        shapes.clear()
        render(encode(Image.new(mode, size), "JPEG"), InputSpec(), fixed(0, 0, 300, 400))
        assert shapes == [(size[1], size[0], len(mode))]

    # Whole pixels; then edges that are rounded by up to half a pixel of the reduced picture.
    @pytest.mark.parametrize(("size", "bound"), [((1000, 750), 0.7), ((2003, 1507), 1.0), ((999, 747), 1.8)])
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_stays_within_the_stated_bound(self, size: tuple[int, int], bound: float, mode: str) -> None:
        data = encode(Image.fromarray(photo_like(*size)).convert(mode), "JPEG", quality=90)
        full = encode(Image.open(io.BytesIO(data)).convert("RGB"), "BMP")
        ours, reference = render(data, InputSpec()).pixels, render(full, InputSpec()).pixels
        assert mean_difference(ours, reference) <= bound
        assert abs(float((ours.astype(int) - reference).mean())) <= 0.2  # no shift of brightness

    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_full_scale_is_pillows(self, mode: str) -> None:
        data = encode(Image.fromarray(photo_like(430, 330)).convert(mode), "JPEG", quality=90)
        full = encode(Image.open(io.BytesIO(data)).convert("RGB"), "BMP")
        for choose in (None, *random_views(20, 430, 330, seed=0)):
            ours, reference = (render(each, InputSpec(), choose).pixels for each in (data, full))
            assert np.array_equal(ours, reference)


JPEG = encode(photo_like(200, 150), "JPEG", quality=90)
PROGRESSIVE = encode(photo_like(200, 150), "JPEG", quality=90, progressive=True)
CMYK_JPEG = encode(Image.fromarray(photo_like(200, 150)).convert("CMYK"), "JPEG", quality=90)
PNG = encode(photo_like(200, 150), "PNG")
WHOLE = View(0, 0, 200, 150)


def header_length(data: bytes) -> int:
    """Bytes of a JPEG up to its first coded pixel."""
    scan = data.index(b"\xff\xda")
    return scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")


class TestTruncated:
    @pytest.mark.parametrize("share", [0.2, 0.3, 0.5, 0.8, 0.97])
    @pytest.mark.parametrize("name", ["JPEG", "CMYK_JPEG", "PNG"])
    def test_rows_before_the_cut_are_kept(self, name: str, share: float) -> None:
        data = globals()[name]
        start = header_length(data) if data is not PNG else 100
        rendered = render(data[: start + int((len(data) - start) * share)], SQUASH)
        assert rendered.truncated
        whole = render(data, SQUASH)
        assert not whole.truncated
        rows = max(1, int(16 * share) - 2)
        assert mean_difference(rendered.pixels[:rows], whole.pixels[:rows]) <= 1
        assert mean_difference(rendered.pixels, whole.pixels) > 0 or share > 0.9

    @pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
    def test_progressive_is_coarser_but_whole(self, share: float) -> None:
        rendered = render(PROGRESSIVE[: int(len(PROGRESSIVE) * share)], SQUASH)
        assert rendered.truncated
        assert mean_difference(rendered.pixels, render(PROGRESSIVE, SQUASH).pixels) <= 12

    @pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, CMYK_JPEG], ids=["baseline", "progressive", "cmyk"])
    def test_a_missing_end_marker_is_seen(self, data: bytes) -> None:
        for cut in (1, 2, 3):
            assert render(data[:-cut], SQUASH).truncated

    @pytest.mark.parametrize("data", [JPEG, CMYK_JPEG], ids=["baseline", "cmyk"])
    def test_cut_and_closed_with_an_end_marker(self, data: bytes) -> None:
        assert render(data[: len(data) // 2] + b"\xff\xd9", SQUASH).truncated

    def test_reduced_scale_and_orientation(self) -> None:
        stored = np.ascontiguousarray(STORED[6](quadrants(400, 600)))
        data = encode(stored, "JPEG", exif=orientation_tag(6), quality=95)
        # A stored row is an upright column, from the right on: a cut leaves the right side.
        rendered = render(data[: len(data) * 3 // 4], SQUASH)
        assert rendered.truncated
        assert_colours(rendered.pixels[:, 8:].repeat(2, axis=1), [GREEN, GREEN, WHITE, WHITE], 6)

    @pytest.mark.parametrize("format", ["GIF", "BMP"])
    def test_other_formats(self, format: str) -> None:
        data = encode(photo_like(200, 150), format)
        rendered = render(data[: len(data) * 2 // 3], SQUASH)
        assert rendered.truncated
        # A BMP starts with its last row; a GIF's rows have different lengths.
        kept = slice(0, 4) if format == "GIF" else slice(8, 16)
        assert np.array_equal(rendered.pixels[kept], render(data, SQUASH).pixels[kept])

    @pytest.mark.parametrize(
        "junk",
        [b"hello" * 100, b"\0" * 1000, JPEG, b"\xff\xd8\xff", b"\n"],
        ids=["text", "zeros", "another", "marker", "newline"],
    )
    def test_junk_after_the_end_is_not_truncation(self, junk: bytes) -> None:
        for data in (JPEG, PROGRESSIVE, CMYK_JPEG):
            rendered = render(data + junk, SQUASH)
            assert not rendered.truncated
            assert np.array_equal(rendered.pixels, render(data, SQUASH).pixels)

    def test_extraneous_bytes_before_a_marker_are_not_truncation(self) -> None:
        tables = JPEG.index(b"\xff\xdb")
        for data in (JPEG[:-2] + bytes(6) + JPEG[-2:], JPEG[:tables] + bytes(4) + JPEG[tables:]):
            with pytest.raises(ValueError, match="extraneous bytes before marker"):
                simplejpeg.decode_jpeg(data)
            rendered = render(data, SQUASH)
            assert not rendered.truncated
            assert np.array_equal(rendered.pixels, render(JPEG, SQUASH).pixels)
            assert render(data[: len(data) * 2 // 3], SQUASH).truncated

    def test_flags_are_exact_in_many_threads(self) -> None:
        kinds = [(JPEG, False), (JPEG[:-3000], True), (PNG, False), (PNG[:-9000], True)]
        kinds += [(CMYK_JPEG, False), (CMYK_JPEG[:-3000], True), (PROGRESSIVE[:-3000], True)]
        kinds += [(JPEG[:-2] + bytes(6) + JPEG[-2:], False)]
        alone = [render(data, SQUASH).pixels for data, _ in kinds]
        jobs = [int(kind) for kind in np.random.default_rng(0).integers(0, len(kinds), 400)]
        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(lambda kind: render(kinds[kind][0], SQUASH), jobs))
        assert [result.truncated for result in results] == [kinds[kind][1] for kind in jobs]
        assert all(np.array_equal(r.pixels, alone[kind]) for r, kind in zip(results, jobs, strict=True))


class TestUndecodable:
    @pytest.mark.parametrize(
        ("data", "start"),
        [
            (b"", "an empty file"),
            (b"hello world, this is text", "25 bytes starting b'hello wo'"),
            (bytes(5000), r"5000 bytes starting b'\x00\x00\x00\x00\x00\x00\x00\x00'"),
            (JPEG[:2], r"2 bytes starting b'\xff\xd8'"),
            (PNG[:12], r"12 bytes starting b'\x89PNG\r\n\x1a\n'"),
        ],
    )
    def test_unknown_bytes(self, data: bytes, start: str) -> None:
        with pytest.raises(ImageError) as caught:
            render(data, SQUASH)
        accepted = "no header of an image that can be read; accepted are JPEG, PNG, WEBP, GIF, BMP, TIFF"
        assert str(caught.value) == f"{start}: {accepted}"

    def test_image_errors_are_data_errors(self) -> None:
        assert issubclass(ImageError, DataError)

    def test_noise_never_raises_anything_else(self) -> None:
        rng = np.random.default_rng(0)
        heads = (
            b"\xff\xd8\xff\xe0",
            PNG[:33],
            JPEG[:200],
            b"GIF89a",
            b"BM",
            b"II*\0\x08\0\0\0",
            b"RIFF\x99\0\0\0WEBPVP8 ",
        )
        for head in heads:
            for _ in range(10):
                with pytest.raises(ImageError):
                    render(head + rng.bytes(400), SQUASH)

    @pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, CMYK_JPEG], ids=["baseline", "progressive", "cmyk"])
    def test_a_jpeg_of_a_header_alone(self, data: bytes) -> None:
        end = header_length(data)
        for cut in (data[:end], data[:end] + b"\xff\xd9"):
            with pytest.raises(ImageError) as caught:
                render(cut, SQUASH)
            assert str(caught.value) == f"JPEG of {len(cut)} bytes: ends before its first pixel"
        for cut in (data[: end - 1], data[: end - 20], data[:100]):
            with pytest.raises(ImageError):
                render(cut, SQUASH)

    def test_a_png_of_a_header_alone(self) -> None:
        with pytest.raises(ImageError, match="no header of an image"):
            render(PNG[:33], SQUASH)  # signature and IHDR
        for end in (41, 43):  # IDAT's own header; two of its bytes
            with pytest.raises(ImageError, match="200 x 150 pixels: "):
                render(PNG[:end], SQUASH)

    @pytest.mark.parametrize("format", ["WEBP", "TIFF"])
    def test_formats_that_cannot_be_repaired(self, format: str) -> None:
        data = encode(photo_like(200, 150), format)
        with pytest.raises(ImageError):
            render(data[: len(data) // 2], SQUASH)

    def test_errors_of_the_caller_are_not_hidden(self) -> None:
        def choose(width: int, height: int) -> View:
            raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            render(JPEG, SQUASH, choose)


def claim_size(data: bytes, width: int, height: int) -> bytes:
    """The JPEG or PNG with another size in its header."""
    if data is PNG:
        ihdr = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + data[33:]
    frame = data.index(b"\xff\xc0") + 5
    return data[:frame] + struct.pack(">HH", height, width) + data[frame + 4 :]


class TestBombs:
    @pytest.mark.parametrize("data", [JPEG, PNG], ids=["jpeg", "png"])
    @pytest.mark.parametrize("pillow_limit", [Image.MAX_IMAGE_PIXELS, None])
    def test_refused_before_decoding(
        self, data: bytes, pillow_limit: int | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
        monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
        with pytest.raises(ImageError, match=r"300000000 pixels.* 178956970"):
            render(claim_size(data, 20000, 15000), SQUASH, lambda w, h: pytest.fail("asked for a view"))

    def test_the_cap_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(images, "PIXEL_CAP", 200 * 150)
        render(JPEG, SQUASH)
        monkeypatch.setattr(images, "PIXEL_CAP", 200 * 150 - 1)
        with pytest.raises(ImageError) as caught:
            render(JPEG, SQUASH)
        assert str(caught.value) == "200 x 150 = 30000 pixels: the cap is 29999"


def run_alone(code: str) -> str:
    """What `code` prints in a process of its own that finds only graft's source."""
    environment = {**os.environ, "PYTHONPATH": str(Path(images.__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_it_imports_no_torch() -> None:
    heavy = ("torch", "torchvision", "hydra")
    assert run_alone(f"import sys, graft.images; print([m for m in {heavy} if m in sys.modules])") == "[]"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the memory setting is glibc's")
def test_memory_is_reused_from_photo_to_photo() -> None:
    code = """
import io, resource
from PIL import Image
from graft.images import render
from graft.inputs import InputSpec
buffer, batch = io.BytesIO(), []
Image.effect_noise((500, 375), 50).convert("RGB").save(buffer, "JPEG")
def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        batch.append(render(buffer.getvalue(), InputSpec()).pixels)
        if len(batch) == 16:
            batch.clear()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / count
faults(48)
print(faults(64))
"""
    assert float(run_alone(code)) < 10  # 40 without the setting
