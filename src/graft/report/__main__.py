"""`python -m graft.report RUN_DIR [--open]`: the page of a run or a search, also of one that was killed or goes on."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from graft.errors import GraftError
from graft.report.page import write_report
from graft.storage import disk_errors, local_path


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and say where it is; returns the exit code: 0, or 2 after an error."""
    parser = argparse.ArgumentParser(prog="python -m graft.report", description=__doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="directory of a run or of a search")
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    arguments = parser.parse_args(argv)
    try:
        run_dir: Path = local_path(arguments.run_dir, "RUN_DIR")
        with disk_errors({"RUN_DIR": run_dir}):
            page = write_report(run_dir)
    except GraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report: {page}")
    if arguments.open:
        webbrowser.open(page.resolve().as_uri())
    return 0


if __name__ == "__main__":
    sys.exit(main())
