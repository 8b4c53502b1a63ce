"""`python -m graft.data COMMAND`: get a folder of photos ready for training."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graft.data.split import LeftOut, SplitReport, split
from graft.errors import GraftError

if TYPE_CHECKING:
    from rich.table import Table

    # At run time this class takes no parameter.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_EXAMPLES = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 after an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m graft.data", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_split(commands)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except GraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


def _add_split(commands: Commands) -> None:
    summary = "make train/, valid/ and test/ from one folder of photos per class"
    parser = commands.add_parser("split", help=summary, description=summary)
    parser.add_argument("src", metavar="SRC", type=Path, help="folder with one folder of photos per class")
    parser.add_argument("dst", metavar="DST", type=Path, help="new or empty folder, outside SRC")
    share = "share of each class's photos in {}/ (default: %(default)s)"
    parser.add_argument("--valid", type=float, default=0.1, metavar="SHARE", help=share.format("valid"))
    parser.add_argument("--test", type=float, default=0.1, metavar="SHARE", help=share.format("test"))
    parser.add_argument("--seed", type=int, default=0, help="another seed, another split (default: 0)")
    parser.add_argument("--link", action="store_true", help="hard links in place of copies: no disk used")
    parser.set_defaults(run=_run_split)


def _run_split(arguments: argparse.Namespace) -> None:
    # rich takes 0.1 s to import: --help and a wrong argument do not pay for it.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    stderr = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal) as progress:
        report = split(
            arguments.src,
            arguments.dst,
            valid=arguments.valid,
            test=arguments.test,
            seed=arguments.seed,
            link=arguments.link,
            track=progress.track,
        )
    Console().print(_table(report))
    for line in _remarks(report):
        print(_printable(line))
    print(_printable(f"next: python train.py data=folder {_root_override(arguments.dst)}"))


def _table(report: SplitReport) -> Table:
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("classes", str(len(report.classes)))
    for side, photos in report.photos.items():
        table.add_row(f"photos in {side}", str(photos))
    table.add_row("duplicates", str(report.duplicates))
    table.add_row("label conflicts", str(len(report.conflicts)))
    table.add_row("left out", str(len(report.left_out)))
    return table


def _remarks(report: SplitReport) -> list[str]:
    """What the person may want to mend, one line each."""
    remarks = [
        f"label conflict: the same photo is {' and '.join(map(str, paths))} (kept in train)"
        for paths in report.conflicts
    ]
    by_reason: dict[str, list[LeftOut]] = {}
    for entry in report.left_out:
        by_reason.setdefault(entry.reason, []).append(entry)
    for reason, entries in by_reason.items():
        remarks.append(f"left out, {reason}: {len(entries)}: {_some([str(entry.path) for entry in entries])}")
    for side, classes in report.thin.items():
        if classes:
            remarks.append(f"no photo in {side}, too few in the class: {_some(classes)}")
    return remarks


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_EXAMPLES])
    return shown if len(names) <= _EXAMPLES else f"{shown} and {len(names) - _EXAMPLES} more"


def _printable(text: str) -> str:
    """File names that are not UTF-8 would break `print`."""
    return os.fsencode(text).decode("utf-8", "replace")


def _root_override(dst: Path) -> str:
    """`data.root=DST`, quoted for Hydra and for the shell where DST needs it."""
    if re.fullmatch(r"[A-Za-z0-9_./-]+", str(dst)):
        return f"data.root={dst}"
    escaped = str(dst).replace("'", r"\'")
    return shlex.quote(f"data.root='{escaped}'")


if __name__ == "__main__":
    sys.exit(main())
