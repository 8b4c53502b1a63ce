"""What a search has learnt, kept for whoever reads it later: search.json, and the page that is made of it."""

from __future__ import annotations

from pathlib import Path

from graft.report.page import make_report
from graft.search.files import write_lessons
from graft.search.search import SearchResult
from graft.search.summary import sentences


def publish(result: SearchResult) -> Path | None:
    """Write search.json, and the page of the search; returns the page, None where it could not be made."""
    write_lessons(
        result.run_dir,
        result.space,
        result.objective,
        result.importances,
        sentences(result),
        gain=result.gain,
        epochs=result.epochs,
        skew=result.skew,
        records=result.records,
        left=result.left,
    )
    return make_report(result.run_dir)
