"""The page: from the files of a run or a search to report.html."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from graft.errors import GraftError, RunError
from graft.report.files import read_run
from graft.report.photos import thumbnails_of
from graft.report.search_view import SearchView, view_search, without_model
from graft.report.sections import RunView, file_name, view_run
from graft.report.trials import in_words, is_search, read_search
from graft.report.verdict import percent
from graft.storage import write_text
from graft.terminal import say

NAME = "report.html"
# Sections as the page's navigation lists them: identifier, title.
CONTENTS = (
    ("verdict", "Verdict"),
    ("accuracy", "Accuracy"),
    ("loss", "Cross-entropy"),
    ("findings", "Findings"),
    ("rules", "Rules and utilisation"),
    ("time", "Time"),
    ("calibration", "Calibration"),
    ("confused", "Confused pairs"),
    ("worst", "Worst mistakes"),
    ("data", "Data checks"),
)
SEARCH_CONTENTS = (
    ("trials", "Trials"),
    ("parallel", "Parallel coordinates"),
    ("importance", "Importance"),
    ("epochs", "Epoch advisor"),
)
LAST_CONTENTS = (("settings", "Configuration"),)


def make_report(path: Path) -> Path | None:
    """`write_report` for whoever has something more important to do: what went wrong is said, and None returned."""
    try:
        return write_report(path)
    except Exception as error:  # any: the model is there all the same
        reason = str(error) if isinstance(error, GraftError | OSError) else f"{type(error).__name__}: {error}"
        say(f"no report: {reason}; `python -m graft.report {path}` makes it when that is mended")
        return None


def write_report(path: Path) -> Path:
    """Write report.html into the directory of a run or a search, whatever its state; returns the file.

    Raises:
        RunError: the directory is neither.
        OSError: the page cannot be written.
    """
    page = render(path)
    target = path / NAME
    write_text(target, page)
    return target


def render(path: Path) -> str:
    """The page of a run or a search.

    Raises:
        RunError: the directory is neither.
    """
    search = view_search(read_search(path)) if is_search(path) else None
    run = read_run(path / "best" if search else path)
    if search is None and not run.state and not run.config:
        raise RunError(
            f"{path} is no run directory: it has neither run.json nor config.yaml, nor study.json of a search"
        )
    absent = without_model(search.files) if search and not run.state else ""
    view = view_run(run, thumbnails_of(run.config), absent)
    return _fill(path, view, search)


def _fill(path: Path, view: RunView, search: SearchView | None) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("graft.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent,
        seconds=seconds,
        class_name=class_name,
        file_name=file_name,
        inside=inside,
        tied=tied,
        value=in_words,
        number=number,
    )
    script = environment.loader.get_source(environment, "page.js")[0] if environment.loader else ""
    return environment.get_template("page.html").render(
        contents=CONTENTS + (SEARCH_CONTENTS if search else ()) + LAST_CONTENTS,
        title=f"{'search' if search else 'run'} {path.name}",
        path=path,
        view=view,
        run=view.run,
        search=search,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def seconds(value: float | None) -> str:
    """`0.3 s`, `12 s`, `2 min 5 s`; empty where there is none."""
    if value is None:
        return ""
    if value < 10:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def number(value: Any) -> str:
    """A threshold or a figure without digits that say nothing."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def tied(text: str) -> str:
    """A sentence in which no line ends between a number and its percent sign."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def inside(path: str, root: str | None) -> str:
    """A path or URL as it is called inside of `root`."""
    return path.removeprefix(f"{str(root).rstrip('/')}/")


def class_name(folder: str) -> str:
    """`077.Miniature_poodle` as a person says it: `Miniature poodle`."""
    return re.sub(r"^\d+[._-]", "", folder).replace("_", " ") or folder
