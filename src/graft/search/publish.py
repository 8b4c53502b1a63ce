"""What a search has learnt, kept for whoever reads it later: search.json, and the page that is made of it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graft.config import OBJECTIVES
from graft.report.page import make_report
from graft.search.search import SearchResult
from graft.search.summary import sentences
from graft.storage import write_text


def publish(result: SearchResult) -> Path | None:
    """Write search.json, and the page of the search; returns the page, None where it could not be made."""
    content = json.dumps(lessons(result), indent=1, allow_nan=False)
    write_text(result.run_dir / "search.json", content + "\n")
    return make_report(result.run_dir)


def lessons(result: SearchResult) -> dict[str, Any]:
    """What study.json does not say, as plain JSON values: graft.report.trials reads it."""
    return {
        "objective": result.objective,
        "maximize": OBJECTIVES[result.objective],
        "logarithmic": [key for key, spread in result.space.spreads.items() if spread.log],
        "importances": [asdict(importance) for importance in result.importances],
        "gain": asdict(result.gain) if result.gain else None,
        "epochs": asdict(result.epochs) if result.epochs else None,
        "skew": asdict(result.skew) if result.skew else None,
        "curves": {r.number: [p for p in r.curve if math.isfinite(p[1])] for r in result.records if r.curve},
        "sentences": list(sentences(result)),
    }
