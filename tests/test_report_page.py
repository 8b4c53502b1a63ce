"""The page in a browser with the network cut: what it loads, says, does and hides, in light, dark, print and narrow."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Dialog, Page, sync_playwright

from graft.report import page as page_module
from graft.report.page import write_report
from tests.conftest import REAL_DATA
from tests.pictures import draw_folder
from tests.run_files import HOSTILE, HOSTILE_FILE, HOSTILE_FOLDER, write_run
from tests.test_report import LESSONS, write_search
from tests.training import run, start, tiny, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, as `apt-get install chromium` brings it")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
STYLE = (Path(page_module.__file__).parent / "templates" / "style.css").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page, and everything that it should not have done."""

    page: Page
    complaints: list[str] = field(default_factory=list)


@pytest.fixture
def opened(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Opens a file; `complaints` has what the console said, what was asked of a network, and what popped up."""
    contexts = []

    def open_file(path: Path, scheme: Any = "light", width: int = 1100) -> Opened:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}, offline=True)
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.on("console", lambda message: found.complaints.append(f"console: {message.text}"))
        found.page.on("pageerror", lambda error: found.complaints.append(f"error: {error}"))
        found.page.on("dialog", lambda dialog: _refuse(found, dialog))
        found.page.on("request", lambda asked: _note_request(found, asked.url, path))
        found.page.goto(path.as_uri())
        return found

    yield open_file
    for context in contexts:
        context.close()


def _refuse(found: Opened, dialog: Dialog) -> None:
    found.complaints.append(f"dialog: {dialog.message}")
    dialog.dismiss()


def _note_request(found: Opened, url: str, path: Path) -> None:
    if url != path.as_uri() and not url.startswith("data:"):
        found.complaints.append(f"request: {url}")


@pytest.fixture(scope="module")
def of_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module")
def of_search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_search(tmp_path_factory.mktemp("searches") / "search", LESSONS))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["of_run", "of_search"])
def test_a_page_is_whole_by_itself(request: pytest.FixtureRequest, opened: Any, kind: str, scheme: str) -> None:
    path = request.getfixturevalue(kind)
    found = opened(path, scheme)
    assert found.page.locator("h1").inner_text().startswith(("run ", "search "))
    assert found.page.locator(".chart svg").count() >= 2
    background = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(246, 247, 249)", "dark": "rgb(17, 21, 28)"}[scheme]
    assert found.complaints == []
    assert path.stat().st_size < 3e6


def test_every_photo_that_is_shown_decodes(of_run: Path, opened: Any) -> None:
    page = opened(of_run).page
    assert page.locator("img").count() == 14  # 9 of the pairs, 3 of the worst again, 2 copies
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth === 132)")


def test_names_from_the_data_are_shown_and_run_nothing(of_run: Path, opened: Any) -> None:
    found = opened(of_run)
    assert HOSTILE in found.page.locator("#worst").inner_text()
    assert HOSTILE in found.page.locator("#findings").inner_text()
    assert found.page.locator("script").count() == 1
    assert found.complaints == []


def test_a_script_that_got_in_all_the_same_would_not_run(of_run: Path, tmp_path: Path, opened: Any) -> None:
    tampered = tmp_path / "tampered.html"
    text = of_run.read_text()
    inserted = "<script>document.title = 'taken over'</script><img src='https://example.org/a.png' onerror='alert(1)'>"
    tampered.write_text(text.replace('<main id="content">', f'<main id="content">{inserted}'))
    found = opened(tampered)
    assert found.page.title() == "graft: run run"
    assert sum("Content Security Policy" in complaint for complaint in found.complaints) >= 2
    assert not [complaint for complaint in found.complaints if complaint.startswith(("dialog", "error"))]


def test_tables_are_sorted_by_mouse_and_by_keyboard(of_search: Path, opened: Any) -> None:
    page = opened(of_search).page
    table = page.locator("#trials table")

    def column() -> list[str]:
        return [row.split("\t")[0].split()[0] for row in table.locator("tbody tr").all_inner_texts()]

    assert column() == ["1", "0", "2"]
    head = table.get_by_role("columnheader", name="optim.lr")
    head.get_by_role("button").click()
    assert column() == ["1", "0", "2"]
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").press("Enter")
    assert column() == ["2", "0", "1"]
    assert head.get_attribute("aria-sort") == "descending"
    table.get_by_role("columnheader", name="valid/loss").get_by_role("button").press("Space")
    assert column() == ["1", "0", "2"], "a trial without a value stays below"
    assert head.get_attribute("aria-sort") is None


def test_a_mark_says_what_it_stands_for(of_run: Path, opened: Any) -> None:
    page = opened(of_run).page
    page.locator('#loss [aria-label="TRAIN step 10: 2.0000"]').hover()
    assert page.locator("#hint").inner_text() == "TRAIN step 10: 2.0000"
    page.mouse.move(2, 2)
    assert page.locator("#hint").is_hidden()


def test_a_figure_is_enlarged_and_magnified_by_keyboard_alone(of_run: Path, opened: Any) -> None:
    page = opened(of_run).page
    viewer = page.locator("#viewer")
    button = page.locator("#loss").get_by_role("button")
    assert button.get_attribute("aria-label").startswith("Enlarge: Cross-entropy by step")
    button.press("Enter")
    assert viewer.is_visible()

    def width() -> float:
        return float(viewer.locator("svg").get_attribute("viewBox").split()[2])

    whole = width()
    page.keyboard.press("+")
    assert width() == pytest.approx(whole / 1.5)
    page.keyboard.press("ArrowRight")
    assert float(viewer.locator("svg").get_attribute("viewBox").split()[0]) == pytest.approx(whole / 6 + whole / 15)
    page.keyboard.press("0")
    assert width() == whole
    viewer.locator(".stage").hover()
    page.mouse.wheel(0, -200)
    page.wait_for_function("whole => document.querySelector('#viewer svg').viewBox.baseVal.width < whole", arg=whole)
    page.keyboard.press("Escape")
    assert viewer.is_hidden()
    assert button.evaluate("button => button === document.activeElement")


@pytest.mark.parametrize("kind", ["of_run", "of_search"])
def test_the_page_can_be_read_without_seeing_it(request: pytest.FixtureRequest, opened: Any, kind: str) -> None:
    page = opened(request.getfixturevalue(kind)).page
    assert page.locator("html").get_attribute("lang") == "en"
    for landmark in ("banner", "main", "navigation", "contentinfo"):
        assert page.get_by_role(landmark).count() == 1, landmark
    levels = [
        int(name[1])
        for name in page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => h.tagName)")
    ]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels)), levels
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.evaluate(
        "[...document.querySelectorAll('[role=img], [role=region]')].every(e => e.getAttribute('aria-label'))"
    )
    assert page.evaluate(
        "[...document.querySelectorAll('table')].every(t => t.caption && t.caption.textContent.length > 5)"
    )
    assert page.locator("th:not([scope])").count() == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    links = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))")
    assert [link for link in ids if link in links] == links, "every link leads to a section, in their order"


def test_the_first_key_skips_to_the_verdict(of_run: Path, opened: Any) -> None:
    page = opened(of_run).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the verdict"
    assert page.locator(".skip").bounding_box()["x"] > 0
    page.keyboard.press("Enter")
    assert page.url.endswith("#content")


@pytest.mark.parametrize("kind", ["of_run", "of_search"])
def test_nothing_sticks_out_on_a_phone(request: pytest.FixtureRequest, opened: Any, kind: str) -> None:
    page = opened(request.getfixturevalue(kind), width=390).page
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_on_paper_everything_is_open_and_light(of_run: Path, opened: Any) -> None:
    page = opened(of_run, "dark").page
    assert not page.locator("#settings pre").is_visible()
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#settings pre").is_visible()
    assert page.locator("nav").is_hidden()
    assert page.locator(".enlarge").first.is_hidden()
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 35, 48)"
    assert page.evaluate("getComputedStyle(document.querySelector('.chart text')).fill") in (
        "rgb(27, 35, 48)",
        "rgb(85, 96, 114)",
    )


# --- colours ---------------------------------------------------------------------------------------------------------


def colours(scheme: str) -> dict[str, str]:
    """Name -> #rrggbb of one scheme."""
    light, dark = STYLE.split("@media screen and (prefers-color-scheme: dark)")
    names = dict(re.findall(r"--([\w-]+): (#\w{6});", light))
    return names if scheme == "light" else names | dict(re.findall(r"--([\w-]+): (#\w{6});", dark.split("* {")[0]))


def contrast(one: str, other: str) -> float:
    """The ratio of relative luminances, 1..21 (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_and_lines_told_from_the_ground(scheme: str) -> None:
    c = colours(scheme)
    text = [(ink, ground) for ink in ("ink", "muted", "accent") for ground in ("page", "card")]
    text += [(kind, f"{kind}-back") for kind in ("good", "fair", "bad")]
    text += [("ink", f"{kind}-back") for kind in ("good", "fair", "bad")]
    text += [("ink", "code"), ("muted", "code"), ("card", "ink")]
    assert {pair: ratio for pair in text if (ratio := contrast(c[pair[0]], c[pair[1]])) < 4.5} == {}
    lines = ["train", "eval", *(f"line{number}" for number in range(1, 9))]
    assert {name: ratio for name in lines if (ratio := contrast(c[name], c["card"])) < 3} == {}


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, one of a hostile name with a photo of one in each split."""
    root = draw_folder(tmp_path_factory.mktemp("photos"))
    for split in ("train", "valid", "test"):
        folder = (root / split / "class_2").rename(root / split / HOSTILE_FOLDER)
        (folder / "000.jpg").rename(folder / f"{HOSTILE_FILE}.jpg")
    return root


def test_a_run_leaves_a_page_that_shows_hostile_names_as_text(photos: Path, tmp_path: Path, opened: Any) -> None:
    result = run(tiny(photos, tmp_path / "run", "optim.lr=1e-5", "trainer.max_epochs=1"))
    assert result.report == tmp_path / "run" / "report.html"
    found = opened(result.report)
    assert HOSTILE_FOLDER in found.page.locator("main").inner_text()
    assert found.page.locator("#loss svg").count() == 1
    assert found.complaints == []


def looked_at(opened: Any, report: Path, name: str) -> None:
    """Open a page in light and dark; it complains of nothing, and its picture is kept where GRAFT_SCREENSHOTS says."""
    assert report.stat().st_size < 3e6
    for scheme in ("light", "dark"):
        found = opened(report, scheme)
        assert found.page.locator(".chart svg").count() >= 4
        if folder := os.environ.get("GRAFT_SCREENSHOTS"):
            found.page.screenshot(path=Path(folder) / f"{name}-{scheme}.png", full_page=True)
        assert found.complaints == []


@pytest.mark.slow
def test_a_real_search_of_eight_trials_has_a_page(tmp_path: Path, opened: Any) -> None:
    photos, run_dir = draw_folder(tmp_path / "photos"), tmp_path / "search"
    space = ("optim.lr=tag(log, interval(1e-3, 1e-1))", "data.batch_size=choice(8, 16)", "search.trials=8")
    process = start(tiny(photos, run_dir, *space), script="tune.py")
    _, err = process.communicate()
    assert process.returncode == 0, err
    looked_at(opened, run_dir / "report.html", "search-of-eight")
    assert opened(run_dir / "report.html").page.locator("#trials tbody tr").count() == 8


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_on_dogs_has_a_page(tmp_path: Path, opened: Any) -> None:
    weights = REAL_DATA / "weights" / "mobilenet_v2.pth"
    places = (f"data.root={REAL_DATA / 'dogs'}", f"model.weights={weights}", f"features.cache_dir={tmp_path / 'cache'}")
    model = ("data=folder", "model.backbone=mobilenet_v2", "trainer.progress=false")
    result = run([*model, *places, f"run_dir={tmp_path / 'run'}"])
    assert result.report is not None
    looked_at(opened, result.report, "run-on-dogs")
    assert opened(result.report).page.locator("#time .steps tbody tr").count() == 7


@pytest.mark.slow
def test_a_run_that_was_killed_has_a_page(photos: Path, tmp_path: Path, opened: Any) -> None:
    run_dir = tmp_path / "run"
    process = start(tiny(photos, run_dir, "trainer.max_epochs=100000", "trainer.patience=null"))
    wait_for(run_dir / "debugger" / "losses-001-00000.parquet", process)
    process.kill()
    process.communicate()
    found = opened(write_report(run_dir))
    assert found.page.locator(".notice").first.inner_text().startswith("This run is unfinished")
    assert found.page.locator("#loss svg").count() == 1
    assert found.page.locator("#data table").count() == 1
    assert found.complaints == []
    assert json.loads((run_dir / "run.json").read_text())["state"] == "unfinished", "a report changes nothing"
