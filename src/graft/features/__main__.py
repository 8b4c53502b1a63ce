"""`python -m graft.features list | clear [KEY ...]`: what the feature cache holds, and getting rid of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from graft.errors import DataError, GraftError
from graft.features.cache import Usage, remove, usage
from graft.storage import local_path

if TYPE_CHECKING:
    # At run time this class takes no parameter.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or 2 after an error."""
    parser = argparse.ArgumentParser(prog="python -m graft.features", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add(commands, "list", "show what is kept, the most recently used first").set_defaults(run=_list)
    clear = _add(commands, "clear", "remove the features of some keys, or all features")
    clear.add_argument("keys", nargs="*", metavar="KEY", help="as `list` names it; without one, everything goes")
    clear.set_defaults(run=_clear)
    arguments = parser.parse_args(argv)
    try:
        root = local_path(arguments.cache_dir, "--cache-dir") / "features"
        arguments.run(arguments, root)
    except GraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _add(commands: Commands, name: str, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.add_argument("--cache-dir", default="cache", help="features.cache_dir of the runs (default: %(default)s)")
    return parser


def _list(arguments: argparse.Namespace, root: Path) -> None:
    spaces = usage(root)
    if not spaces:
        print(f"no features in {root}")
        return
    table = Table()
    for column in ("key", "backbone", "view", "precision", "photos", "MB", "last used"):
        # A key is to be copied: it is never folded.
        table.add_column(column, no_wrap=column == "key", justify="right" if column in ("photos", "MB") else "left")
    for space in spaces:
        table.add_row(*_cells(space))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _cells(space: Usage) -> tuple[str, ...]:
    view = space.describe["view"]
    return (
        space.key,
        space.describe["backbone"],
        view if isinstance(view, str) else f"seed {view[0]}, view {view[1]}",
        space.describe.get("precision", ""),
        str(space.photos),
        f"{space.bytes / 1e6:.1f}",
        datetime.fromtimestamp(space.used).strftime("%Y-%m-%d %H:%M"),
    )


def _clear(arguments: argparse.Namespace, root: Path) -> None:
    spaces = {space.key: space for space in usage(root)}
    if unknown := [key for key in arguments.keys if key not in spaces]:
        raise DataError(f"KEY={unknown[0]} is not in {root}; accepted: {', '.join(sorted(spaces)) or 'none is there'}")
    keys = arguments.keys or list(spaces)
    busy = [key for key in dict.fromkeys(keys) if not _remove(root, spaces[key])]
    if busy:
        raise DataError(f"KEY={busy[0]} is being computed by another process and stays; try again when that has ended")
    if not keys:
        print(f"no features in {root}")


def _remove(root: Path, space: Usage) -> bool:
    if not remove(root, space.key):
        return False
    print(f"removed {space.key}: {space.photos} photos, {space.bytes / 1e6:.1f} MB")
    return True


if __name__ == "__main__":
    sys.exit(main())
