"""The page at /, used in headless Chromium as a person would."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from serve.reading import Limits
from tests.serving import Running, photo, running

CHROMIUM = Path("/usr/bin/chromium")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs Chromium at {CHROMIUM}")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(limits=Limits(body=100_000)) as started:
        yield started


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser.new_page(viewport={"width": 360, "height": 740})
        browser.close()


@pytest.fixture
def page(browser_page: Page, server: Running) -> Iterator[Page]:
    """The page on a phone; anything that the browser complains of fails the test."""
    complaints: list[str] = []
    requested: list[str] = []
    browser_page.on("pageerror", lambda error: complaints.append(str(error)))
    browser_page.on("request", lambda request: requested.append(request.url))
    home = f"http://127.0.0.1:{server.port}/"
    browser_page.goto(home)
    yield browser_page
    assert complaints == []
    assert all(url.startswith((home, "blob:" + home, "data:image/jpeg;")) for url in requested), requested
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= 360
    if folder := os.environ.get("GRAFT_SCREENSHOTS"):
        name = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].partition(" ")[0]
        browser_page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def choose(page: Page, data: bytes) -> None:
    page.set_input_files("#file", {"name": "dog.jpg", "mimeType": "image/jpeg", "buffer": data})


def test_a_chosen_photo_is_shown_with_its_class(page: Page) -> None:
    choose(page, photo("red", size=(300, 200)))
    expect(page.get_by_role("heading", name="red", exact=True)).to_be_visible()
    expect(page.get_by_role("listitem").first).to_have_text("red100 %")
    assert page.evaluate("document.getElementById('photo').naturalWidth") == 300
    assert page.evaluate("document.activeElement.id") == "result"


def test_doubts_are_said_in_words(page: Page) -> None:
    choose(page, photo("grey"))
    expect(page.get_by_role("heading", name="I am unsure. It may be: red")).to_be_visible()
    choose(page, photo("black"))
    expect(page.get_by_role("heading", name="This does not look like anything that I was taught.")).to_be_visible()


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        (b"some text", "dog.txt", "Dog.txt is not a photo. A photo may be a JPEG, PNG or WEBP."),
        (b"some text", "dog.jpg", "The photo cannot be read: 9 bytes starting"),
        (bytes(30_000_000), "dog.jpg", "The body has 30000000 bytes or more. A body may have 100000 bytes."),
    ],
    ids=["text", "no-image", "long"],
)
def test_faults_are_answered_in_words(page: Page, tmp_path: Path, data: bytes, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    page.set_input_files("#file", tmp_path / name)
    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(page.locator("#result")).to_be_hidden()


def test_an_address_goes_by_the_keyboard(page: Page) -> None:
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type("https://host/dog.jpg")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("start the server with serve.allow_url=true")


def test_a_photo_of_an_address_is_shown_as_the_server_fetched_it(
    page: Page, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.service, "begin_fetching", lambda: lambda address: photo("blue", size=(300, 200)))
    page.fill("#url", "https://host/dog.jpg")
    page.get_by_role("button", name="Look at it").click()
    expect(page.get_by_role("heading", name="blue", exact=True)).to_be_visible()
    expect(page.locator("#photo")).to_be_visible()
    assert page.evaluate("document.getElementById('photo').naturalWidth") == 32  # of the model's square
    choose(page, photo("red", size=(300, 200)))
    expect(page.get_by_role("heading", name="red", exact=True)).to_be_visible()
    assert page.evaluate("document.getElementById('photo').naturalWidth") == 300


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_photo_is_dropped_or_pasted(page: Page, kind: str) -> None:
    page.evaluate(
        """([kind, bytes]) => {
            const carried = new DataTransfer();
            carried.items.add(new File([new Uint8Array(bytes)], "dog.png", { type: "image/png" }));
            const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: carried, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: carried });
            document.dispatchEvent(event);
        }""",
        [kind, list(photo("blue", "PNG"))],
    )
    expect(page.get_by_role("heading", name="blue", exact=True)).to_be_visible()


def test_the_page_allows_nothing_from_elsewhere(server: Running) -> None:
    _, _, headers = server.ask("/")
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy
