"""One folder of photos per class -> train/, valid/ and test/. Imports no torch: it starts at once.

The side of a photo follows from its bytes, its class and the seed alone. Not from file names or the
order of a directory, so the same photos are split alike on every machine.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from graft.data.files import SUFFIXES, is_ignored
from graft.errors import DataError

SIDES = ("train", "valid", "test")
LAYOUT = "a folder with at least two folders of photos, one per class"

_SPLIT_NAMES = {"train", "valid", "val", "validation", "test"}

T = TypeVar("T")


class Track(Protocol):
    """Passes items on and shows how far it is, as `rich.progress.Progress.track` does."""

    def __call__(self, sequence: Iterable[T], *, description: str) -> Iterable[T]:
        """Yield the items of `sequence`."""


@dataclass(frozen=True)
class LeftOut:
    """A file that is not taken; `path` is relative to SRC."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Photo:
    """A photo of SRC: `path` relative to SRC, `name` in DST, `digest` of its bytes (SHA-256, hex)."""

    path: Path
    class_name: str
    name: str
    digest: str


@dataclass(frozen=True)
class SplitReport:
    """What a split made. Paths are relative to SRC.

    photos: number per side, duplicates counted. duplicates: photos beyond the first of the same bytes.
    conflicts: the paths of photos whose bytes lie under several classes. thin: per side, the classes
    that have no photo there.
    """

    classes: tuple[str, ...]
    photos: dict[str, int]
    duplicates: int
    conflicts: tuple[tuple[Path, ...], ...]
    left_out: tuple[LeftOut, ...]
    thin: dict[str, tuple[str, ...]]


def split(
    src: Path,
    dst: Path,
    *,
    valid: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    link: bool = False,
    track: Track | None = None,
) -> SplitReport:
    """Copy the photos of `src` (one folder per class) to dst/train, dst/valid and dst/test.

    `valid` and `test` are shares of each class's distinct photos; test=0 makes no test/. `link` makes
    hard links in place of copies. DST appears whole or not at all. Raises DataError.
    """
    _check_portions(valid, test, seed)
    classes = _class_folders(src)
    _check_destination(src, dst)
    paths, left_out = _find_photos(src, classes)
    photos = _read_photos(src, paths, track or _untracked)
    contents: dict[str, set[str]] = {name: set() for name in classes}
    for photo in photos:
        contents[photo.class_name].add(photo.digest)
    sides = assign(contents, valid=valid, test=test, seed=seed)
    _check_sides(src, sides, valid, test)
    _write(src, dst, photos, sides, link, track or _untracked)
    return _report(photos, sides, left_out)


def assign(contents: Mapping[str, Collection[str]], *, valid: float, test: float, seed: int) -> dict[str, str]:
    """The side of each digest, from the distinct digests of each class. Pure.

    Digests of several classes go to train: a label that is contradicted must not decide a figure.
    """
    classes_of: dict[str, int] = {}
    for digests in contents.values():
        for digest in digests:
            classes_of[digest] = classes_of.get(digest, 0) + 1
    sides = dict.fromkeys(classes_of, "train")
    for name, digests in contents.items():
        own = [digest for digest in digests if classes_of[digest] == 1]
        own.sort(key=lambda digest: hashlib.sha256(os.fsencode(f"{seed}/{name}/{digest}")).digest())
        in_valid, in_test = _quotas(len(own), len(digests) - len(own), valid, test)
        # Test first, so that another share for valid leaves test as it is.
        sides.update(dict.fromkeys(own[:in_test], "test"))
        sides.update(dict.fromkeys(own[in_test : in_test + in_valid], "valid"))
    return sides


def _quotas(own: int, shared: int, valid: float, test: float) -> tuple[int, int]:
    """How many of a class's `own` photos go to valid and test; its `shared` ones are in train already."""
    total = own + shared
    least = int(total >= (3 if test else 2))
    in_valid = max(least, math.floor(total * valid + 0.5))
    in_test = max(least, math.floor(total * test + 0.5)) if test else 0
    room = own if shared else own - 1
    while in_valid + in_test > room:
        if in_test >= in_valid:
            in_test -= 1
        else:
            in_valid -= 1
    return in_valid, in_test


def _check_portions(valid: float, test: float, seed: int) -> None:
    if not 0 < valid < 1:
        raise DataError(f"valid={valid}: accepted is a share above 0 and below 1")
    if not 0 <= test < 1:
        raise DataError(f"test={test}: accepted is a share from 0 to below 1")
    if not valid + test < 1:
        raise DataError(f"valid={valid} test={test}: nothing is left for train; accepted is a sum below 1")
    if seed < 0:
        raise DataError(f"seed={seed}: accepted is a whole number from 0")


def _class_folders(src: Path) -> list[str]:
    """Names of the class folders of `src`, sorted."""
    if not src.is_dir():
        found = "not a folder" if src.exists() else "no such folder"
        raise DataError(f"SRC={src}: {found}; accepted is {LAYOUT}")
    names = sorted(name for name in _names(src) if (src / name).is_dir())
    made = [name for name in names if name.lower() in _SPLIT_NAMES]
    # One such name among others may be a class: a train among cars and ships.
    if made and (len(made) > 1 or made == names):
        listed = ", ".join(f"{name}/" for name in made)
        raise DataError(
            f"SRC={src}: is split already, it has {listed}; accepted is {LAYOUT} "
            f"(train on it as it is with data=folder data.root={src})"
        )
    if len(names) < 2:
        found = f"the only folder in it is {names[0]}/" if names else "there are no folders in it"
        raise DataError(f"SRC={src}: {found}; accepted is {LAYOUT}")
    return names


def _check_destination(src: Path, dst: Path) -> None:
    if dst.resolve().is_relative_to(src.resolve()):
        raise DataError(f"DST={dst}: lies inside SRC={src}; accepted is a folder outside it")
    if dst.exists() and not dst.is_dir():
        raise DataError(f"DST={dst}: is a file; accepted is a new or an empty folder")
    if dst.is_dir() and any(dst.iterdir()):
        raise DataError(f"DST={dst}: is not empty; accepted is a new or an empty folder")
    partial = _partial(dst)
    if partial.exists():
        raise DataError(f"DST={dst}: {partial} is left of a split that was cut short; delete it first")


def _partial(dst: Path) -> Path:
    """Where DST is built: beside it, so that one rename finishes it."""
    whole = dst.resolve()
    return whole.with_name(whole.name + ".partial")


def _names(folder: Path) -> list[str]:
    """Names in `folder`, sorted, without hidden and ignored ones."""
    try:
        return sorted(name for name in os.listdir(folder) if not is_ignored(name))
    except OSError as error:
        raise DataError(f"SRC: {folder} cannot be read: {error.strerror}") from error


def _find_photos(src: Path, classes: Sequence[str]) -> tuple[dict[str, list[Path]], list[LeftOut]]:
    """Paths of the photos of each class and of what is left out, relative to `src`."""
    stray = [Path(name) for name in _names(src) if not (src / name).is_dir()]
    left_out = [LeftOut(path, "not in a class folder") for path in stray]
    found: dict[str, list[Path]] = {}
    for name in classes:
        found[name] = []
        _walk(src, Path(name), found[name], left_out)
    empty = [name for name in classes if not found[name]]
    if empty:
        raise DataError(
            f"SRC={src}: no photo in {', '.join(f'{name}/' for name in empty)}; accepted is at least one "
            f"file per class that ends in {', '.join(sorted(SUFFIXES))}"
        )
    return found, left_out


def _walk(src: Path, folder: Path, found: list[Path], left_out: list[LeftOut]) -> None:
    for name in _names(src / folder):
        path = folder / name
        if not (src / path).is_dir():
            reason = _reason_against(src / path)
            if reason:
                left_out.append(LeftOut(path, reason))
            else:
                found.append(path)
        elif (src / path).is_symlink():
            # It may lead back to a folder above, and then the walk would not end.
            left_out.append(LeftOut(path, "linked folder"))
        else:
            _walk(src, path, found, left_out)


def _reason_against(path: Path) -> str | None:
    if path.suffix.lower() not in SUFFIXES:
        return f"not a photo ({path.suffix.lower() or 'no suffix'})"
    if not path.is_file():
        return "broken link" if path.is_symlink() else "not a file"
    # All empty files have the same bytes: they would look like one photo under many classes.
    return None if path.stat().st_size else "empty file"


def _read_photos(src: Path, paths: Mapping[str, Sequence[Path]], track: Track) -> list[Photo]:
    named = [(name, path, flat) for name, of_class in paths.items() for path, flat in flat_names(of_class).items()]
    return [Photo(path, name, flat, _digest(src / path)) for name, path, flat in track(named, description="reading")]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"SRC: {path} cannot be read: {error.strerror}") from error


def flat_names(paths: Iterable[Path]) -> dict[Path, str]:
    """A file name for each path CLASS/FOLDER/.../FILE of one class, no two alike.

    Differences of case count as none: some file systems do not see them. Shallow paths keep their names.
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in sorted(paths, key=lambda path: (len(path.parts), path.parts)):
        flat = Path("_".join(path.parts[1:]))
        name, number = flat.name, 1
        while name.casefold() in taken:
            number += 1
            name = f"{flat.stem}-{number}{flat.suffix}"
        taken.add(name.casefold())
        names[path] = name
    return names


def _check_sides(src: Path, sides: Mapping[str, str], valid: float, test: float) -> None:
    """No split without a photo in each side that was asked for."""
    for side, share in (("valid", valid), ("test", test)):
        if share and side not in sides.values():
            raise DataError(
                f"SRC={src}: too few photos for {side}={share}; accepted is at least one class "
                f"with {3 if test else 2} photos that differ and lie under no other class"
            )


def _write(src: Path, dst: Path, photos: Sequence[Photo], sides: Mapping[str, str], link: bool, track: Track) -> None:
    partial = _partial(dst)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"DST={dst}: {partial} cannot be made: {error.strerror}") from error
    try:
        for photo in track(photos, description="linking" if link else "copying"):
            folder = partial / sides[photo.digest] / photo.class_name
            folder.mkdir(parents=True, exist_ok=True)
            _place(src / photo.path, folder / photo.name, link)
        # Onto an empty folder this succeeds, onto any other it fails.
        partial.rename(dst.resolve())
    except OSError as error:
        raise DataError(f"DST={dst}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _place(source: Path, target: Path, link: bool) -> None:
    if not link:
        shutil.copyfile(source, target)
        return
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        reason = "SRC and DST lie on different disks" if error.errno == errno.EXDEV else error.strerror
        raise DataError(f"--link: {source} cannot be linked: {reason}; leave --link out to copy") from error


def _report(photos: Sequence[Photo], sides: Mapping[str, str], left_out: Sequence[LeftOut]) -> SplitReport:
    together: dict[str, list[Photo]] = {}
    counts = dict.fromkeys(SIDES, 0)
    present: dict[str, set[str]] = {side: set() for side in SIDES}
    for photo in photos:
        side = sides[photo.digest]
        together.setdefault(photo.digest, []).append(photo)
        counts[side] += 1
        present[side].add(photo.class_name)
    classes = sorted({photo.class_name for photo in photos})
    alike = [group for group in together.values() if len({photo.class_name for photo in group}) > 1]
    return SplitReport(
        classes=tuple(classes),
        photos=counts,
        duplicates=len(photos) - len(together),
        conflicts=tuple(tuple(photo.path for photo in group) for group in alike),
        left_out=tuple(left_out),
        thin={side: tuple(name for name in classes if name not in present[side]) for side in SIDES if counts[side]},
    )


def _untracked(sequence: Iterable[T], *, description: str) -> Iterable[T]:
    return sequence
