"""The page with a real model: a dog is named, a temple, a flower, a text and a huge file are answered in words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.resources import files
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from graft.config import ServeConfig
from serve.archive import opened
from serve.local import load_to_serve
from serve.reading import Limits
from tests.serving import Running, running
from tests.test_dogs import DOGS, dogs
from tests.test_page import CHROMIUM, OPTIONS

__all__ = ["dogs"]  # the fixture of a run on 120 breeds
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs Chromium at {CHROMIUM}"),
]
NOT_TAUGHT = "This does not look like anything that I was taught. The nearest:"


@pytest.fixture(scope="module")
def server(dogs: Path) -> Iterator[Running]:
    with (
        opened(dogs / "model.tar.gz") as folder,
        running(lambda: load_to_serve(ServeConfig(), lambda: folder, nullcontext()), limits=Limits()) as started,
    ):
        yield started


@pytest.fixture(scope="module", params=[(360, 740), (1200, 800)], ids=["phone", "desk"])
def page(request: pytest.FixtureRequest, server: Running) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        width, height = request.param
        opened = browser.new_page(viewport={"width": width, "height": height})
        opened.goto(f"http://127.0.0.1:{server.port}/")
        yield opened
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()


@pytest.fixture(autouse=True)
def screenshot(request: pytest.FixtureRequest, page: Page) -> Iterator[None]:
    yield
    if folder := os.environ.get("GRAFT_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{request.node.name}.png", full_page=True)


def test_a_dog_is_called_by_its_breed(page: Page) -> None:
    photo = sorted((DOGS / "test").glob("*/*.jpg"))[0]
    page.set_input_files("#file", photo)
    breed = photo.parent.name.partition(".")[2].replace("_", " ")
    expect(page.get_by_role("heading", name=breed)).to_be_visible()
    expect(page.get_by_role("listitem")).to_have_count(5)
    assert page.evaluate("document.getElementById('photo').naturalWidth") == 224


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_what_is_no_dog_is_not_called_one(page: Page, name: str) -> None:
    page.set_input_files("#file", str(files("sklearn.datasets") / "images" / name))
    expect(page.get_by_role("heading", name=NOT_TAUGHT)).to_be_visible()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("notes.txt", b"not a photo", "Notes.txt is not a photo. A photo may be a JPEG, PNG or WEBP."),
        ("huge.jpg", bytes(30_000_000), "The body has 30000000 bytes or more. A body may have 6291456 bytes."),
    ],
    ids=["text", "30-MB"],
)
def test_what_cannot_be_looked_at_is_told_in_words(
    page: Page, tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(data)
    page.set_input_files("#file", tmp_path / name)
    expect(page.get_by_role("alert")).to_have_text(words)
