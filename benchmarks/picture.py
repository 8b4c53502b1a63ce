"""`python -m benchmarks.picture`: the README's picture of the report, of a run on the demo photos. Needs Chromium.

The light and the dark page side by side, as far as docs/report.webp is to show them.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from graft.report.page import write_report

WIDTH, HEIGHT = 900, 1180  # of the part of a page that is shown, in CSS pixels
MOST_BYTES = 200_000
TARGET = Path(__file__).parents[1] / "docs" / "report.webp"


def main(argv: Sequence[str] | None = None) -> int:
    """Take the picture; returns the exit code: 0, or 2 where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", default="runs/demo", help="a run, as `make demo` leaves it (default: %(default)s)")
    parser.add_argument("--target", type=Path, default=TARGET, help="file to write (default: docs/report.webp)")
    arguments = parser.parse_args(argv)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("error: Chromium is not there; on Debian: apt-get install chromium", file=sys.stderr)
        return 2
    picture = side_by_side(shots(write_report(Path(arguments.run_dir)), chromium))
    data = small(picture)
    arguments.target.write_bytes(data)
    print(f"{arguments.target}: {picture.width} x {picture.height}, {len(data) / 1e3:.0f} kB")
    return 0


def shots(page: Path, chromium: str) -> list[Image.Image]:
    """The upper part of a page in light and in dark."""
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            context = browser.new_context(
                color_scheme="light" if scheme == "light" else "dark",
                viewport={"width": WIDTH, "height": HEIGHT},
                offline=True,
            )
            opened = context.new_page()
            opened.goto(page.resolve().as_uri())
            found.append(Image.open(io.BytesIO(opened.screenshot())).convert("RGB"))
            context.close()
        browser.close()
    return found


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in a row."""
    row = Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height))
    for place, picture in enumerate(pictures):
        row.paste(picture, (place * picture.width, 0))
    return row


def small(picture: Image.Image) -> bytes:
    """WebP of the highest quality that fits into MOST_BYTES."""
    for quality in range(90, 20, -10):
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= MOST_BYTES:
            break
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
