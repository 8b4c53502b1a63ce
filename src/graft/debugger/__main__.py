"""`python -m graft.debugger replay RUN_DIR`: judge a run by its records, also one that goes on or was killed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from graft.diagnosis import Diagnosis, Finding
from graft.errors import GraftError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 where a rule found something, 2 after an error."""
    parser = argparse.ArgumentParser(prog="python -m graft.debugger", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    summary = "run the rules over the records of a run"
    replay = commands.add_parser("replay", help=summary, description=f"{summary}; nothing is written")
    replay.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="directory of the run")
    replay.add_argument("--rule", metavar="NAME", action="append", default=[], help="this rule alone; may be repeated")
    arguments = parser.parse_args(argv)
    try:
        return _replay(arguments.run_dir, arguments.rule)
    except GraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _replay(run_dir: Path, names: Sequence[str]) -> int:
    # numpy, and rich for the table, load late: --help does not pay for them.
    from rich.console import Console

    from graft.debugger.judge import judge
    from graft.debugger.records import read_records

    diagnosis = judge(read_records(run_dir), names)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(_table(diagnosis))
    for finding in diagnosis.findings:
        for line in _lines(finding):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 1 if diagnosis.findings else 0


def _table(diagnosis: Diagnosis) -> object:
    from rich.table import Table

    table = Table(title="rules", title_justify="left")
    for column in ("rule", "checks that", "triggered", "data points", "parameters"):
        table.add_column(column, justify="right" if column in ("triggered", "data points") else "left")
    for row in diagnosis.rules:
        parameters = ", ".join(f"{name} {value:g}" for name, value in row.parameters.items())
        table.add_row(row.rule, row.checks, str(row.triggered), str(row.points), parameters)
    return table


def _lines(finding: Finding, indent: str = "") -> list[str]:
    since = "" if finding.since_step is None else f", since step {finding.since_step}"
    lines = [f"{indent}{finding.rule}{since}"]
    for name in ("seen", "why", "change", "gain"):
        text = getattr(finding, name)
        lines += [f"{indent}  {name}: {text}"] if text else []
    for symptom in finding.symptoms:
        lines += [f"{indent}  its symptom:", *_lines(symptom, f"{indent}    ")]
    return lines


if __name__ == "__main__":
    sys.exit(main())
