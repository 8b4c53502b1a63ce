"""`python -m serve predict PHOTO...`: a table for people, JSON lines for machines, CSV of folders."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from graft.environment import available_cores
from graft.errors import ConfigError, DataError
from graft.images import Pixels
from graft.storage import write_text
from graft.terminal import progress_bar
from serve.answers import Answer
from serve.arguments import Arguments, read_arguments
from serve.checking import load_model
from serve.model import ServedModel
from serve.reading import Limits, decode, read_file
from serve.refusals import Refusal
from serve.remote import RemoteAnswer

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
AHEAD = 32  # photos that are decoded before the first of them is answered: 5 MB at 224 x 224
LIMITS = Limits()
OUTPUT = "predictions.csv"

Said = Answer | RemoteAnswer | Refusal


def predict(argv: Sequence[str]) -> None:
    """Answer photos; a folder's photos go to a CSV file. Ends with 1 where a photo could not be read."""
    arguments = read_arguments(argv, places=("bundle", "output"), flags=("--json",), words=True)
    if not arguments.words:
        raise ConfigError("no photo is given; accepted: PHOTO..., or a folder of photos")
    photos, folders = find_photos([Path(word) for word in arguments.words])
    with load_model(arguments) as model:
        count = min(arguments.config.top_k, len(model.labels))
        tell(answer_all(photos, model), len(photos), count, arguments, folders=folders)


def tell(answers: Iterable[tuple[Path, Said]], photos: int, count: int, arguments: Arguments, *, folders: bool) -> None:
    """Print or write what was said of photos, whoever said it.

    Args:
        answers: of each photo, in order.
        photos: how many there are.
        count: classes of a photo in JSON and CSV.
        arguments: with --json or output=FILE.
        folders: whether a folder was given, which makes CSV of it.

    Raises:
        SystemExit: with 1, where a photo could not be read.
    """
    if "--json" in arguments.flags:
        problems = _print_json(answers, count)
    elif folders or "output" in arguments.places:
        problems = _write_csv(answers, photos, arguments.places.get("output", Path(OUTPUT)), count)
    else:
        problems = _print_table(answers)
    if problems:
        sys.exit(1)


def find_photos(places: Sequence[Path]) -> tuple[list[Path], bool]:
    """The photos among files and below folders, in order, and whether there was a folder.

    Raises:
        DataError: a place does not exist, or a folder has no photo.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            if not inside:
                raise DataError(f"{place} holds no photo; accepted are {', '.join(sorted(SUFFIXES))}")
            found += inside
        elif place.exists():
            found.append(place)
        else:
            raise DataError(f"{place} does not exist; accepted are photos, and folders of them")
    return found, any(place.is_dir() for place in places)


def answer_all(photos: Sequence[Path], model: ServedModel) -> Iterator[tuple[Path, Said]]:
    """Each photo with its answer, in order; photos are decoded by other threads meanwhile."""

    def read(path: Path) -> Pixels | Refusal:
        try:
            return decode(read_file(path), model.spec, LIMITS)
        except Refusal as refusal:
            return refusal

    with ThreadPoolExecutor(available_cores(), thread_name_prefix="decode") as pool:
        for start in range(0, len(photos), AHEAD):
            part = photos[start : start + AHEAD]
            for path, image in zip(part, pool.map(read, part), strict=True):
                yield path, image if isinstance(image, Refusal) else model.predict(image[np.newaxis])[0]


def in_words(said: Said) -> str:
    """What a person is told beside the likeliest class, or in its place."""
    if isinstance(said, Refusal):
        return said.problem
    return "not one of these" if said.not_one_of_these else "unsure" if said.unsure else ""


def _print_table(answers: Iterable[tuple[Path, Said]]) -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("photo", "class", "probability", "next", ""):
        table.add_column(column, overflow="fold", justify="right" if column == "probability" else "left")
    problems = 0
    for path, said in answers:
        if isinstance(said, Refusal):
            problems += 1
            table.add_row(str(path), "", "", "", in_words(said))
            continue
        first, *rest = said.top(3)
        others = ", ".join(f"{row['label']} {row['probability']:.2f}" for row in rest)
        table.add_row(str(path), first["label"], f"{first['probability']:.2f}", others, in_words(said))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return problems


def _print_json(answers: Iterable[tuple[Path, Said]], count: int) -> int:
    """A line for each photo."""
    problems = 0
    for path, said in answers:
        if isinstance(said, Refusal):
            problems += 1
            content: dict[str, Any] = {"problem": said.problem, "accepted": said.accepted}
        else:
            content = {
                "predictions": said.top(count),
                "unsure": said.unsure,
                "not_one_of_these": said.not_one_of_these,
            }
        print(json.dumps({"photo": str(path), **content}))
    return problems


def _write_csv(answers: Iterable[tuple[Path, Said]], photos: int, output: Path, count: int) -> int:
    """A row for each photo: path, the likeliest classes with their probabilities, doubts, and what was wrong.

    Where the answers end early, those that came are written all the same.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [f"{kind}_{place}" for place in range(1, count + 1) for kind in ("class", "probability")]
    writer.writerow(["path", *names, "unsure", "not_one_of_these", "problem"])
    answered = problems = 0
    try:
        with progress_bar("predicting", photos) as advance:
            for path, said in answers:
                if isinstance(said, Refusal):
                    problems += 1
                    writer.writerow([path, *[""] * len(names), "", "", said.problem])
                else:
                    answered += 1
                    writer.writerow([path, *_cells(said, count, len(names)), ""])
                advance(1)
    finally:
        write_text(output, buffer.getvalue())
        missing = photos - answered - problems
        has = f"has them all but the {missing} after them" if missing else "has them all"
        print(f"{answered} photos answered, {problems} not readable; {output} {has}")
    return problems


def _cells(said: Answer | RemoteAnswer, count: int, width: int) -> list[str]:
    """The likeliest classes with their probabilities, `width` cells, and the two doubts."""
    cells = [cell for row in said.top(count) for cell in (row["label"], f"{row['probability']:.6f}")]
    blank = [""] * (width - len(cells))  # an endpoint may tell fewer classes than are asked for here
    return [*cells, *blank, str(said.unsure).lower(), str(said.not_one_of_these).lower()]
