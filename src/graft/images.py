"""Bytes to an upright RGB uint8 square at model size: the one decoder of training and serving. No torch.

`render` does one thing in one pass: header, view, decode (JPEGs at the smallest scale that still
holds the view), crop, resize, orientation and flip. Embedded colour profiles are ignored, as
torchvision does. It is safe and useful to call from many threads: decoding and resizing release the
interpreter lock, and no global setting of Pillow or OpenCV is touched (OpenCV's own threads work on
squares of more than 300 pixels or so, and only for one caller at a time).
docs/decisions/0004-decoder.md has the measurements behind the choices.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg  # type: ignore[import-untyped]
from PIL import ExifTags, Image, ImageFile

from graft.errors import DataError
from graft.inputs import InputSpec

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Raised whenever `render` gives other pixels than before: cached features are keyed by it.
PIXELS_VERSION = 2
PIXEL_CAP = 178_956_970  # Pillow's own limit, held here too since a caller may have lifted that one

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom

_Mat = npt.NDArray[Any]  # uint8 too; OpenCV's stubs do not tell
_JPEGS = ("JPEG", "MPO")
_JPEG_COLOURS = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # all that Pillow's plugin tells apart
_END_OF_JPEG = b"\xff\xd9"
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # orientation to cv2.flip's code; 5 to 8 transpose first
# What Pillow's plugins raise on damaged files (fuzzed, also with warnings as errors); else it is a bug.
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, Warning, struct.error, zlib.error)

# Freeing a block this large makes glibc keep freed memory of that size from now on (mallopt(3), "dynamic
# mmap threshold"). Without it the memory of each batch of results goes back to the system and is faulted
# in again: 30 to 57 page faults a photo at 224 x 224. The block itself is never touched, so never there.
np.empty(8 << 20, np.uint8)


class ImageError(DataError):
    """Bytes that cannot be decoded at all, or that would decode to too many pixels."""


class PixelError(ImageError):
    """A header that announces more pixels than PIXEL_CAP."""


@dataclass(frozen=True)
class View:
    """A part of the upright photo, in its pixels (fractions allowed), mirrored left-right if `flip`."""

    left: float
    top: float
    right: float
    bottom: float
    flip: bool = False


@dataclass(frozen=True)
class Rendered:
    """`pixels`: uint8 [S, S, 3], RGB, writable, C-contiguous. `truncated`: missing parts were padded."""

    pixels: Pixels
    truncated: bool


def plain_view(width: int, height: int, spec: InputSpec) -> View:
    """The deterministic view of a photo of `width` x `height` pixels.

    With fit=crop the box is the pre-image of torchvision's Resize(resize) followed by
    CenterCrop(image_size), with its roundings (torchvision.transforms.functional), so that one
    resize from this box yields the same picture.
    """
    if spec.fit == "squash":
        return View(0, 0, width, height)
    short = min(width, height)
    new_width, new_height = (int(spec.resize * side / short) for side in (width, height))
    left = round((new_width - spec.image_size) / 2)
    top = round((new_height - spec.image_size) / 2)
    across, down = width / new_width, height / new_height
    return View(left * across, top * down, (left + spec.image_size) * across, (top + spec.image_size) * down)


def render(data: bytes, spec: InputSpec, choose: Callable[[int, int], View] | None = None) -> Rendered:
    """Decode `data` and return the chosen view of it at model size.

    `choose(width, height)` gets the size of the upright photo (EXIF orientation applied) and returns
    the view; the default is `plain_view`. Animations give their first frame, transparency lies on
    white, 16-bit values keep their upper 8 bits. Truncated files are padded and say so.
    Raises ImageError where no pixel can be had, or more than PIXEL_CAP would be.
    """
    image = open_header(data)
    # Only JPEGs decode at the view's scale; the others may tell their orientation after the pixels.
    picture, truncated = (None, False) if image.format in _JPEGS else _decode_whole(image)
    orientation = _orientation(image)
    width, height = image.size if orientation < 5 else image.size[::-1]
    view = choose(width, height) if choose else plain_view(width, height, spec)
    box = _stored_box(view, orientation, image.size)
    if picture is None:
        picture, box, truncated = _decode_jpeg(data, image, box, spec.image_size)
    small = _turn(_resize(_crop(picture, box), spec.image_size), orientation, view.flip)
    if small.ndim == 2:
        small = cv2.cvtColor(small, cv2.COLOR_GRAY2RGB)
    return Rendered(small, truncated)


def open_header(data: bytes, formats: tuple[str, ...] = FORMATS) -> ImageFile.ImageFile:
    """Read the header alone; ImageError where none of `formats` has one, PixelError where it announces too many."""
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PixelError(f"too many pixels: {error}") from error
    except _DAMAGE as error:
        known = ", ".join(formats)
        start = f"{len(data)} bytes starting {bytes(data[:8])!r}" if data else "an empty file"
        raise ImageError(f"{start}: no header of an image that can be read; accepted are {known}") from error
    width, height = image.size
    if width * height > PIXEL_CAP:
        raise PixelError(f"{width} x {height} = {width * height} pixels: the cap is {PIXEL_CAP}")
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF (or XMP) orientation, 1..8; 1 where there is none, or it cannot be read.

    Pillow turns TIFFs upright while loading them, and then takes the tag away.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:
        return 1
    return value if value in range(1, 9) else 1


def _stored_box(view: View, orientation: int, size: tuple[int, int]) -> Box:
    """The view's box in the pixels of the file as stored, clamped to its `size`."""
    width, height = size
    left, top, right, bottom = view.left, view.top, view.right, view.bottom
    if orientation >= 5:
        left, top, right, bottom = top, left, bottom, right
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)


def _crop(pixels: Pixels, box: Box) -> Pixels:
    """What lies in the box, its edges rounded to whole pixels, at least one each way; nothing is copied."""
    height, width = pixels.shape[:2]
    left, top = min(round(box[0]), width - 1), min(round(box[1]), height - 1)
    return pixels[top : max(round(box[3]), top + 1), left : max(round(box[2]), left + 1)]


def _resize(pixels: _Mat, side: int) -> _Mat:
    """`pixels` [h, w] or [h, w, 1 or 3] as [side, side] or [side, side, 3].

    Bilinear looks at two pixels each way, so from 2:1 on it would skip some: averages come first.
    """
    height, width = pixels.shape[:2]
    if max(height, width) >= 2 * side:
        # Never larger in one direction while smaller in the other: INTER_AREA then turns into bilinear.
        pixels = cv2.resize(pixels, (min(width, side), min(height, side)), interpolation=cv2.INTER_AREA)
    return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_LINEAR)


def _turn(pixels: _Mat, orientation: int, flip: bool) -> _Mat:
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    if orientation in _FLIPS:
        pixels = cv2.flip(pixels, _FLIPS[orientation])
    return cv2.flip(pixels, 1) if flip else pixels


def _decode_jpeg(data: bytes, image: Image.Image, box: Box, side: int) -> tuple[Pixels, Box, bool]:
    """Pixels, the box in them, truncated: at the smallest of 1, 1/2, 1/4, 1/8 with box >= side.

    Only powers of two: they have fast transforms and stay within 0.6/255 of the full decode.
    """
    extent = min(box[2] - box[0], box[3] - box[1])
    factor = next((factor for factor in (8, 4, 2) if extent >= factor * side), 1)
    left, top, right, bottom = (edge / factor for edge in box)
    least = {"min_width": -(-image.width // factor), "min_height": -(-image.height // factor)}
    try:
        pixels = simplejpeg.decode_jpeg(data, _JPEG_COLOURS[image.mode], **least)
        truncated = False
    except ValueError as error:
        pixels, truncated = _decode_jpeg_by_pillow(data, factor)
        # "Premature end of JPEG file", or "of data segment": pixels are missing. Other complaints
        # (bytes before a marker, a rare subsampling) concern photos that every viewer shows whole.
        truncated = truncated or "premature end" in str(error).lower()
    else:
        pixels = _without_ink(pixels) if image.mode == "CMYK" else pixels
    return pixels, (left, top, right, bottom), truncated


def _without_ink(pixels: Pixels) -> Pixels:
    """RGB of CMYK as JPEGs store it: inverted, whether Adobe signed it or not, say Pillow and browsers."""
    size = (pixels.shape[1], pixels.shape[0])
    return np.asarray(Image.frombytes("CMYK", size, pixels, "raw", "CMYK;I").convert("RGB"))


def _decode_jpeg_by_pillow(data: bytes, factor: int) -> tuple[Pixels, bool]:
    """What simplejpeg complains of: pixels at 1/factor, truncated."""
    if not _has_pixels(data):
        raise ImageError(f"JPEG of {len(data)} bytes: ends before its first pixel")
    with contextlib.suppress(*_DAMAGE):
        return _draft(data, factor), False
    try:
        # With the end marker libjpeg pads; Pillow's own switch for that is global, thus not thread-safe.
        return _draft(data + _END_OF_JPEG, factor), True
    except _DAMAGE as error:
        raise ImageError(f"JPEG of {len(data)} bytes: {error}") from error


def _draft(data: bytes, factor: int) -> Pixels:
    image = open_header(data)
    image.draft(None, (image.width // factor, image.height // factor))
    return np.asarray(image.convert("RGB") if image.mode == "CMYK" else image)


def _has_pixels(data: bytes) -> bool:
    """Whether anything follows a JPEG's header: libjpeg paints grey, and says no more than "premature end"."""
    at = 2
    while at + 4 <= len(data):
        marker, length = struct.unpack_from(">HH", data, at)
        if marker < 0xFF00:
            return True  # junk between segments; there is no telling
        at += 2 + length
        if marker == 0xFFDA:  # start of scan: coded pixels follow
            break
    return data[at : at + 2] not in (b"", _END_OF_JPEG)


def _decode_whole(image: ImageFile.ImageFile) -> tuple[Pixels, bool]:
    """Pixels [h, w] or [h, w, 3], truncated: of a file other than JPEG."""
    truncated = _load(image)
    try:
        return np.asarray(_without_alpha(image)), truncated
    except ValueError as error:
        raise ImageError(f"{image.format} in mode {image.mode}: {error}") from error


def _load(image: ImageFile.ImageFile) -> bool:
    """Decode; whether the file ended early. ImageError where nothing was painted."""
    try:
        image.load()
    except _DAMAGE as error:
        image.tile = []  # what was decoded before the error stays, the rest is black or background
        if image.format == "TIFF" or not _is_painted(image):  # a broken TIFF is not turned upright
            raise ImageError(f"{image.format} of {image.width} x {image.height} pixels: {error}") from error
        return True
    return False


def _is_painted(image: Image.Image) -> bool:
    """Whether a partly decoded image has pixels of more than one value."""
    try:
        values = np.asarray(image)
    except _DAMAGE:
        return False
    return bool((values != values[0, 0]).any())


def _without_alpha(image: Image.Image) -> Image.Image:
    """Picture in mode RGB or L: transparency over white, wide numbers at 8 bits."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_bytes(np.asarray(image)))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(layer, mask=layer)
        return white
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def _to_bytes(values: npt.NDArray[Any]) -> Pixels:
    """Integers are 16-bit: 0..65535. Floats are 0..1, 0..255 or 0..65535, whichever holds the highest."""
    if np.issubdtype(values.dtype, np.integer):
        return np.asarray(np.clip(values, 0, 65535) // 257, dtype=np.uint8)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    white = next((white for white in (1.0, 255.0) if values.max() <= white), 65535.0)
    return np.asarray(np.clip(values / white, 0.0, 1.0) * 255 + 0.5, dtype=np.uint8)
