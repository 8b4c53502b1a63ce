"""Random views against torchvision's RandomResizedCrop, and normalisation against torchvision's."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import normalize

from graft.images import View
from graft.inputs import IMAGENET_MEAN, IMAGENET_STD
from graft.transforms import normalise, random_view

DRAWS = 4000


def views(width: int, height: int, count: int = DRAWS) -> list[View]:
    rng = np.random.default_rng(0)
    return [random_view(width, height, rng) for _ in range(count)]


def torchvision_boxes(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """(left, top, width, height) as torchvision draws them."""
    picture = torch.empty((1, height, width))
    for _ in range(DRAWS):
        top, left, high, wide = RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3])
        yield left, top, wide, high


# 500 x 375 is a common photo; 1600 x 200 cannot hold most of the crops that are drawn.
@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (1600, 200)])
def test_views_are_distributed_as_torchvisions(width: int, height: int) -> None:
    torch.manual_seed(0)
    ours = np.array([(v.left, v.top, v.right - v.left, v.bottom - v.top) for v in views(width, height)])
    theirs = np.array(list(torchvision_boxes(width, height)), float)
    names = ("left", "top", "area", "log aspect")
    ours_by_name, theirs_by_name = (
        dict(zip(names, (b[:, 0], b[:, 1], b[:, 2] * b[:, 3], np.log(b[:, 2] / b[:, 3])), strict=True))
        for b in (ours, theirs)
    )
    for name in names:
        one, other = ours_by_name[name], theirs_by_name[name]
        error = math.hypot(one.std(), other.std()) / math.sqrt(DRAWS)
        assert abs(one.mean() - other.mean()) < 4 * error + 0.5 * (name in ("left", "top")), name
        assert one.std() == pytest.approx(other.std(), rel=0.1, abs=0.01), name


def test_views_lie_in_the_photo_and_half_are_flipped() -> None:
    drawn = views(50, 30)
    assert all(0 <= v.left < v.right <= 50 and 0 <= v.top < v.bottom <= 30 for v in drawn)
    assert all(edge == round(edge) for v in drawn for edge in (v.left, v.top, v.right, v.bottom))
    assert sum(v.flip for v in drawn) / DRAWS == pytest.approx(0.5, abs=0.04)
    # the borders are reached on every side
    assert {0, 50} <= {v.left for v in drawn} | {v.right for v in drawn}
    assert {0, 30} <= {v.top for v in drawn} | {v.bottom for v in drawn}


@pytest.mark.parametrize(("width", "height", "box"), [(900, 3, (448, 0, 452, 3)), (3, 900, (0, 448, 3, 452))])
def test_a_strip_gives_its_centre(width: int, height: int, box: tuple[float, ...]) -> None:
    drawn = views(width, height, 50)
    centred = [v for v in drawn if (v.left, v.top, v.right, v.bottom) == box]
    assert len(centred) > 40
    assert {v.flip for v in centred} == {False, True}


def test_a_single_pixel_is_its_own_view() -> None:
    assert {(v.left, v.top, v.right, v.bottom) for v in views(1, 1, 20)} == {(0, 0, 1, 1)}


def test_a_view_depends_on_its_generator_alone() -> None:
    first = [random_view(500, 375, np.random.default_rng([3, index])) for index in range(5)]
    np.random.seed(5)
    torch.manual_seed(5)
    again = [random_view(500, 375, np.random.default_rng([3, index])) for index in (4, 3, 2, 1, 0)]
    assert again[::-1] == first
    assert len(set(first)) == 5


@pytest.mark.parametrize(("mean", "std"), [(IMAGENET_MEAN, IMAGENET_STD), ((0.1, 0.5, 0.9), (1.0, 0.5, 0.25))])
def test_normalisation_is_torchvisions(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    # every value a pixel can have, in every channel, and two rows that differ
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    images = torch.cat([levels, levels.flip(1), levels.flip(2)], dim=3)
    found = normalise(torch.cat([images, 255 - images]), mean, std)
    planes = torch.cat([images, 255 - images]).permute(0, 3, 1, 2).float() / 255
    assert (found.shape, found.dtype) == ((2, 3, 16, 16), torch.float32)
    torch.testing.assert_close(found, normalize(planes, list(mean), list(std)), rtol=0, atol=1e-6)


def test_what_inference_used_first_can_be_trained_through() -> None:
    mean, std = (0.31, 0.32, 0.33), (0.41, 0.42, 0.43)  # of no other test: constants are kept
    images = torch.full((1, 2, 2, 3), 100.0)
    with torch.inference_mode():
        normalise(images, mean, std)
    images.requires_grad_()
    normalise(images, mean, std).sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert images.grad[0, 0, 0].tolist() == pytest.approx([1 / (255 * value) for value in std])
