"""The files of a search: study.json, trials.csv and best.yaml."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from graft.search.space import Params, overrides
from graft.search.trials import Record
from graft.storage import write_text

# They say where a run is written, or how the search went on: best.yaml is for another run.
_NOT_FOR_RUNS = ("run_dir=", "overrides_from=", "search.", "search=", "evaluate.")


def write_trials(run_dir: Path, records: Sequence[Record], best: int | None) -> None:
    """Write study.json and trials.csv; `best` is None where no trial ended well."""
    rows = [row for record in records if (row := _row(record))]
    write_text(run_dir / "study.json", json.dumps({"trials": rows, "best": best}, indent=1, allow_nan=False) + "\n")
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
