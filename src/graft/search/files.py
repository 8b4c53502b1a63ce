"""The files of a search: study.json, trials.csv, search.json and best.yaml."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from graft.config import OBJECTIVES
from graft.search.advice import Epochs, Gain, Skew
from graft.search.importance import Importance, says_something
from graft.search.space import Params, Space, overrides
from graft.search.trials import Record
from graft.storage import write_text

# They say where a run is written, or how the search went on: best.yaml is for another run.
_NOT_FOR_RUNS = ("run_dir=", "overrides_from=", "search.", "search=", "evaluate.")


def write_trials(run_dir: Path, records: Sequence[Record], best: int | None, to_come: int = 0) -> None:
    """Write study.json, trials.csv and progress.json.

    Args:
        run_dir: of the search.
        records: of its trials; those that have not ended are left out.
        best: number of the best; None where no trial ended well.
        to_come: trials that have not ended, those that nobody has begun included.
    """
    rows = [row for record in records if (row := _row(record))]
    write_text(run_dir / "study.json", json.dumps({"trials": rows, "best": best}, indent=1, allow_nan=False) + "\n")
    write_text(run_dir / "progress.json", json.dumps({"to_come": to_come}) + "\n")
    keys = list(dict.fromkeys(key for record in records for key in record.params))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["number", *keys, "state", "value", "reason", "seconds"])
    for record in records:
        if (outcome := record.outcome) is not None:
            values = [record.params.get(key) for key in keys]
            seconds = f"{outcome.seconds:.3f}"
            writer.writerow([record.number, *values, outcome.state, outcome.value, outcome.reason, seconds])
    write_text(run_dir / "trials.csv", buffer.getvalue())


def write_lessons(
    run_dir: Path,
    space: Space,
    objective: str,
    importances: Sequence[Importance],
    sentences: Iterable[str],
    *,
    gain: Gain | None = None,
    epochs: Epochs | None = None,
    skew: Skew | None = None,
    records: Sequence[Record] = (),
    left: int = 0,
) -> None:
    """Write search.json: what study.json does not say; graft.report.trials reads it.

    Args:
        run_dir: of the search.
        space: what was searched.
        objective: its name.
        importances: of the keys.
        sentences: what the search says at its end.
        gain: see `SearchResult`; so are `epochs` and `skew`.
        epochs: likewise.
        skew: likewise.
        records: of trials whose learning curves are known.
        left: trials for which there was no time.
    """
    content = {
        "objective": objective,
        "maximize": OBJECTIVES[objective],
        "logarithmic": [key for key, spread in space.spreads.items() if spread.log],
        "importances": [asdict(importance) for importance in importances],
        "importances_say": says_something(importances),
        "gain": asdict(gain) if gain else None,
        "epochs": asdict(epochs) if epochs else None,
        "skew": asdict(skew) if skew else None,
        "curves": {r.number: [p for p in r.curve if math.isfinite(p[1])] for r in records if r.curve},
        "sentences": list(sentences),
        "left": left,
    }
    write_text(run_dir / "search.json", json.dumps(content, indent=1, allow_nan=False) + "\n")


def best_overrides(given: Sequence[str], params: Params) -> str:
    """best.yaml: what the command line said and the best trial's parameters, as a YAML list of overrides.

    Args:
        given: the command line of the search.
        params: of the best trial.
    """
    keys = {line.partition("=")[0].lstrip("+") for line in overrides(params)}
    kept = [line for line in given if line.partition("=")[0].lstrip("+") not in keys]
    lines = [line for line in kept if not line.lstrip("+~").startswith(_NOT_FOR_RUNS)] + overrides(params)
    return "".join(f"- {json.dumps(line)}\n" for line in lines)


def _row(record: Record) -> dict[str, object]:
    outcome = record.outcome
    if outcome is None:
        return {}
    return {
        "number": record.number,
        "params": record.params,
        "state": outcome.state,
        "value": outcome.value,
        "reason": outcome.reason,
        "seconds": round(outcome.seconds, 3),
        "steps": outcome.steps,
    }
