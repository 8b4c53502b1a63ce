"""Small pictures of photos, and whether two of them show the same: aligned first, for copies are cropped."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from graft.images import ImageError, Pixels, render
from graft.inputs import InputSpec

SIDE = 64  # of a thumbnail
MARGIN = 3  # of half a thumbnail: how far the coarse search moves it each way, 9 % of the side
SCALES = (1 / 1.1, 1 / 1.05, 1.0, 1.05, 1.1)
DETAIL = 1.5  # pixels; what is smoother than this is shading that most photos share
COARSE = 0.4
CONTRAST = 1.0  # grey levels of detail below which there is nothing to compare
STRETCH = 1.25  # the most an alignment may scale: more, and flat regions fit anything
OVERLAP = 0.6  # the least share of a thumbnail that both photos show

EVERYWHERE = np.ones((SIDE, SIDE), np.uint8)

Floats = NDArray[np.float32]


def thumbnail(data: bytes, fit: str) -> Pixels | None:
    """Luminance of a photo, uint8 [SIDE, SIDE]; None of bytes that cannot be decoded.

    Args:
        data: of an image file.
        fit: crop gives the central square, squash the whole photo.
    """
    # Rendered at twice the size and averaged, so that the detail hardly depends on the photo's size.
    spec = InputSpec(2 * SIDE, 2 * SIDE, fit)
    try:
        pixels = render(data, spec).pixels
    except ImageError:
        return None
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return _shrink(np.asarray(grey, np.uint8), SIDE)


def compare(first: Pixels | None, second: Pixels | None) -> tuple[float, bool]:
    """How far two thumbnails, uint8 [SIDE, SIDE], show the same picture.

    Returns:
        The correlation of their detail where they overlap once aligned, 0 where nothing speaks for an overlap,
        and whether one is mirrored.
    """
    if first is None or second is None or min(_detail(first).std(), _detail(second).std()) < CONTRAST:
        return 0.0, False
    mirror = np.ascontiguousarray(first[:, ::-1])
    straight, flipped = _place(first, second), _place(mirror, second)
    mirrored = flipped[0] > straight[0]
    score, warp = flipped if mirrored else straight
    if score < COARSE:
        return 0.0, False
    return _agreement(mirror if mirrored else first, second, warp), mirrored


def _shrink(picture: Pixels, side: int) -> Pixels:
    return np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _detail(thumbnail: Pixels) -> Floats:
    values = thumbnail.astype(np.float32)
    return np.asarray(values - cv2.GaussianBlur(values, (0, 0), DETAIL), np.float32)


def _place(first: Pixels, second: Pixels) -> tuple[float, Floats]:
    """Where the centre of the first fits the second best, at half size: correlation, affine map [2, 3] at full size."""
    small, other = (_detail(_shrink(picture, SIDE // 2)) for picture in (first, second))
    centre = small[MARGIN:-MARGIN, MARGIN:-MARGIN]
    best, found = -1.0, (1.0, (MARGIN, MARGIN))
    for scale in SCALES:
        side = round(len(centre) * scale)
        part = cv2.resize(centre, (side, side), interpolation=cv2.INTER_LINEAR)
        _, score, _, (left, top) = cv2.minMaxLoc(cv2.matchTemplate(other, part, cv2.TM_CCOEFF_NORMED))
        if score > best:
            best, found = score, (side / len(centre), (left, top))
    scale, corner = found
    # Pixel i has its centre at i + 1/2, at half size and at full size.
    shift = [2 * (at - MARGIN * scale) + (scale - 1) / 2 for at in corner]
    return best, np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], np.float32)


def _agreement(first: Pixels, second: Pixels, warp: Floats) -> float:
    """Correlation of the detail of two thumbnails, the second aligned to the first from a first guess on.

    The alignment maximises the enhanced correlation coefficient (Evangelidis and Psarakis 2008) over affine maps.
    """
    mine, other = _detail(first), _detail(second)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-4)
    try:
        _, found = cv2.findTransformECC(mine, other, warp, cv2.MOTION_AFFINE, stop, EVERYWHERE, 3)
    except cv2.error:  # it says so by an error where nothing fits
        return 0.0
    warp = np.asarray(found, np.float32)
    if not np.isfinite(warp).all():
        return 0.0
    stretch = np.linalg.svd(warp[:, :2], compute_uv=False)
    if stretch.max() > STRETCH or stretch.min() < 1 / STRETCH:
        return 0.0
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = np.asarray(cv2.warpAffine(other, warp, (SIDE, SIDE), flags=how), np.float32)
    shown = np.asarray(cv2.warpAffine(EVERYWHERE, warp, (SIDE, SIDE), flags=how)) == 1
    if shown.mean() < OVERLAP:
        return 0.0
    return _correlation(mine[shown], moved[shown])


def _correlation(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / np.sqrt(float(a @ a) * float(b @ b) + 1e-12))
