"""`python -m graft.data COMMAND`: get photos ready for training, here or in S3."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from graft.data.split import LeftOut, SplitReport, split
from graft.errors import GraftError

if TYPE_CHECKING:
    from rich.table import Table

    from graft.data.findings import Finding
    from graft.data.folder import Folder
    from graft.data.upload import UploadReport

    # At run time this class takes no parameter.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_EXAMPLES = 3
_DAMAGE_AND_LEAKS = ("not_an_image", "truncated", "identical_across_splits")
_LAYOUT = "with train/, valid/ (or val/) and test/, one folder per class in each"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 if `check` found damage or leaks, 2 after an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m graft.data", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_split(commands)
    _add_fetch(commands)
    _add_upload(commands)
    _add_check(commands)
    _add_list(commands)
    arguments = parser.parse_args(argv)
    try:
        code: int | None = arguments.run(arguments)
    except GraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted: {arguments.if_interrupted}", file=sys.stderr)
        return 130
    return code or 0


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
    parser.set_defaults(run=_run_split, if_interrupted="nothing was written")


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


def _add_fetch(commands: Commands) -> None:
    summary = "download a zip file of photos and unpack it, as a run does where data.root is not there"
    parser = commands.add_parser("fetch", help=summary, description=summary)
    parser.add_argument("url", metavar="URL", help="data.archive: s3://BUCKET/KEY that anybody may read, or https://")
    parser.add_argument("dst", metavar="DST", type=Path, help=f"folder that is not there yet; it gets photos {_LAYOUT}")
    parser.add_argument("--bytes", type=int, metavar="N", help="data.archive_bytes: size of the file (default: any)")
    parser.add_argument("--region", help="data.archive_region: of its bucket (default: asked for)")
    parser.set_defaults(run=_run_fetch, if_interrupted="what has come is kept; the same command goes on from here")


def _run_fetch(arguments: argparse.Namespace) -> None:
    from graft.data.archive import fetch_archive
    from graft.terminal import progress_bar

    target, bar = arguments.dst.expanduser(), partial(progress_bar, unit="bytes")
    fetch_archive(arguments.url, target, size=arguments.bytes, region=arguments.region, progress=bar)
    print(_printable(f"{target} is there"))
    print(_printable(f"next: python train.py data=folder {_root_override(target)}"))


def _add_upload(commands: Commands) -> None:
    summary = "copy a folder to S3: in parallel, only what changed, verified at the end"
    parser = commands.add_parser("upload", help=summary, description=summary)
    parser.add_argument("src", metavar="LOCAL", type=Path, help=f"folder of photos, {_LAYOUT}")
    parser.add_argument("dst", metavar="s3://BUCKET/PREFIX", help="where its files go; the bucket is there already")
    parser.set_defaults(run=_run_upload, if_interrupted="what was sent is kept; the same command goes on from here")


def _run_upload(arguments: argparse.Namespace) -> None:
    # numpy takes as long as rich to import.
    from graft.data.upload import upload
    from graft.terminal import progress_bar

    report = upload(arguments.src, arguments.dst, progress=partial(progress_bar, unit="bytes"))
    for line in _upload_lines(report, arguments.dst):
        print(_printable(line))


def _upload_lines(report: UploadReport, target: str) -> list[str]:
    size = f"{report.sent_bytes / 1e6:,.1f} MB"
    lines = [f"{target}: {report.sent} sent ({size}), {report.unchanged} unchanged, all verified by size and MD5"]
    if report.extra:
        lines.append(f"not in LOCAL, and left there: {len(report.extra)}: {_some(report.extra)}")
    return [*lines, f"next: python train.py data=folder {_root_override(target)}"]


def _add_check(commands: Commands) -> None:
    summary = "look at every photo once: damage, copies in two splits, classes without photos"
    codes = (
        "The exit code is 1 where photos are damaged or lie in two splits, 2 where nothing could be checked, else 0."
    )
    parser = commands.add_parser("check", help=summary, description=f"{summary}. {codes}")
    parser.add_argument("path", metavar="PATH", help=f"folder or s3://BUCKET/PREFIX, {_LAYOUT}")
    parser.add_argument("--cache-dir", default="cache", help="features.cache_dir of the runs (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="name every file, not one of each kind")
    parser.set_defaults(run=_run_check, if_interrupted="the same command goes on from here")


def _run_check(arguments: argparse.Namespace) -> int:
    # torch comes with these, and takes seconds.
    from rich.console import Console

    from graft.config import DataConfig
    from graft.data.folder import scan
    from graft.data.stores import open_store
    from graft.environment import available_cores
    from graft.inspection import check_folder
    from graft.storage import disk_errors, local_path
    from graft.terminal import progress_bar

    cache = local_path(arguments.cache_dir, "--cache-dir")
    store = open_store(arguments.path, "PATH", cache=cache / "objects", max_bytes=DataConfig().cache_gb * 1e9)
    with disk_errors({"--cache-dir": cache}):
        folder = scan(store, key="PATH")
        count = sum(len(split) for split in folder.splits())
        with progress_bar("checking photos", count) as advance:
            found = check_folder(folder, cache, workers=available_cores(), progress=advance)
    Console(width=None if sys.stdout.isatty() else 120).print(_photo_table(folder))
    for line in _check_lines(found, every=arguments.all):
        print(_printable(line))
    return int(any(finding.check in _DAMAGE_AND_LEAKS for finding in found))


def _photo_table(folder: Folder) -> Table:
    import numpy as np
    from rich.table import Table

    table = Table()
    for column in ("split", "photos", "class folders", "smallest class", "largest class"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for part in folder.splits():
        # Which classes the photos of test have is not looked at before it is opened.
        counts = [] if part.sealed else np.bincount(part.labels(), minlength=len(folder.class_names)).tolist()
        ends = (str(min(counts)), str(max(counts))) if counts else ("", "")
        table.add_row(part.name, str(len(part)), str(len(folder.folders[part.name])), *ends)
    return table


def _check_lines(found: Sequence[Finding], *, every: bool) -> list[str]:
    lines = []
    for finding in found:
        lines.append(f"{finding.check}: {finding.message}")
        lines += [f"  {file}" for file in finding.files if every]
    lines = lines or ["nothing is wrong with the photos"]
    return [*lines, "near-duplicates in two splits are looked for by a run: they take features"]


def _add_list(commands: Commands) -> None:
    summary = "class names in label order: what the numbers of a model mean"
    parser = commands.add_parser("list", help=summary, description=summary)
    parser.add_argument("path", metavar="PATH", help=f"folder or s3://BUCKET/PREFIX, {_LAYOUT}")
    parser.add_argument("--json", action="store_true", help="a JSON list of the names")
    parser.set_defaults(run=_run_list, if_interrupted="nothing was written")


def _run_list(arguments: argparse.Namespace) -> None:
    from graft.data.folder import class_names
    from graft.data.stores import open_store

    names = class_names(open_store(arguments.path, "PATH"), key="PATH")
    if arguments.json:
        print(json.dumps(names))
        return
    width = len(str(len(names) - 1))
    for index, name in enumerate(names):
        print(_printable(f"{index:{width}}  {name}"))


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


def _root_override(dst: Path | str) -> str:
    """`data.root=DST`, quoted for Hydra and for the shell where DST needs it."""
    if re.fullmatch(r"(s3://)?[A-Za-z0-9_./-]+", str(dst)):
        return f"data.root={dst}"
    escaped = str(dst).replace("'", r"\'")
    return shlex.quote(f"data.root='{escaped}'")


if __name__ == "__main__":
    sys.exit(main())
