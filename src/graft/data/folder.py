"""A folder of photos as splits: train/, valid/ (or val/) and test/, one folder per class. No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graft.data.files import SUFFIXES, is_ignored
from graft.errors import DataError

DIGEST_BYTES = 16

Digests = NDArray[np.bytes_]  # [N], dtype S16: one content hash per photo


@dataclass(frozen=True)
class Split:
    """The photos of one split, in the order of their paths.

    `files` are relative to `directory`; the first part of each is its class. A sealed split gives
    its files, for hashing and feature extraction, but not its labels.
    """

    name: str
    directory: Path
    files: tuple[str, ...]
    class_names: tuple[str, ...]
    sealed: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def paths(self) -> list[Path]:
        """Absolute or root-relative path of every photo."""
        return [self.directory / file for file in self.files]

    def labels(self) -> NDArray[np.int64]:
        """Class index of every photo, int64 [N].

        Raises:
            DataError: the split is sealed.
        """
        if self.sealed:
            raise DataError(f"the labels of {self.name} are sealed; only evaluate.py opens them")
        index = {name: number for number, name in enumerate(self.class_names)}
        return np.array([index[file.partition("/")[0]] for file in self.files], np.int64)

    def keep(self, mask: NDArray[np.bool_]) -> Split:
        """The photos where `mask`, bool [N], is true."""
        return replace(self, files=tuple(file for file, kept in zip(self.files, mask, strict=True) if kept))

    def opened(self) -> Split:
        """The same split with its labels; for evaluate.py alone, which counts the openings."""
        return replace(self, sealed=False)


@dataclass(frozen=True)
class Folder:
    """The splits found below a root; `test` is None where there is none.

    `ignored` are files in class folders that are no photos, and photos beside the class folders, relative to
    their split.
    """

    root: Path
    class_names: tuple[str, ...]
    train: Split
    valid: Split
    test: Split | None
    ignored: tuple[str, ...]

    def splits(self) -> list[Split]:
        """train, valid and, where there is one, test."""
        return [self.train, self.valid, *([self.test] if self.test else [])]


def scan(root: Path, hint: str = "") -> Folder:
    """Find the splits and classes below `root`. Class order is that of the sorted folder names.

    Args:
        root: a folder with train/, valid/ or val/, and perhaps test/.
        hint: what to tell a person when `root` is not there.

    Raises:
        DataError: the root, train/ or valid/ is missing, a split has no photos, or there are not two classes.
    """
    if not root.is_dir():
        raise DataError(f"data.root={root} is not there; {hint or 'give data.root=PATH of a folder'}")
    places = {"train": root / "train", "valid": _valid_directory(root), "test": root / "test"}
    found = {name: _list_split(place) for name, place in places.items() if place.is_dir()}
    if missing := [name for name in ("train", "valid") if name not in found]:
        raise DataError(
            f"data.root={root} has no {missing[0]}/ folder; accepted is train/, valid/ (or val/) and test/, one "
            "folder per class in each; `python -m graft.data split SRC DST` makes them from one folder per class"
        )
    class_names = tuple(sorted({name for classes, _, _ in found.values() for name in classes}))
    splits = {
        name: Split(name, places[name], tuple(files), class_names, sealed=name == "test")
        for name, (_, files, _) in found.items()
    }
    for split in splits.values():
        if not split.files:
            raise DataError(
                f"{split.directory} has no photos; accepted are {', '.join(sorted(SUFFIXES))} in class folders"
            )
    if len(class_names) < 2:
        raise DataError(f"data.root={root}: one class ({class_names[0]}); accepted is at least two")
    ignored = tuple(file for _, _, others in found.values() for file in others)
    return Folder(root, class_names, splits["train"], splits["valid"], splits.get("test"), ignored)


def digest_files(paths: Sequence[Path], workers: int) -> Digests:
    """Content hash (BLAKE2b, 16 bytes) of every file, bytes [N] of dtype S16.

    numpy's S16 pads with zero bytes, so two digests compare equal exactly where their bytes do.

    Raises:
        DataError: a file cannot be read.
    """
    out = np.empty(len(paths), f"S{DIGEST_BYTES}")
    # In portions: one task per photo costs more than hashing it.
    portions = [slice(start, start + 256) for start in range(0, len(paths), 256)]

    def digest(portion: slice) -> None:
        out[portion] = [_digest(path) for path in paths[portion]]

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        list(pool.map(digest, portions))
    return out


def _digest(path: Path) -> bytes:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=DIGEST_BYTES).digest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def fingerprint(digests: Digests) -> str:
    """Hex digest of a set of photos, whatever their order and names."""
    return hashlib.blake2b(np.sort(digests).tobytes(), digest_size=DIGEST_BYTES).hexdigest()


def _valid_directory(root: Path) -> Path:
    valid, val = root / "valid", root / "val"
    if valid.is_dir() and val.is_dir():
        raise DataError(f"data.root={root} has both valid/ and val/; accepted is one of them")
    return val if val.is_dir() else valid


def _list_split(directory: Path) -> tuple[list[str], list[str], list[str]]:
    """Class folders, photos (relative, sorted), and what is ignored: photos of no class and files that are none."""
    entries = sorted((entry for entry in os.scandir(directory) if not is_ignored(entry.name)), key=lambda e: e.name)
    classes = [entry.name for entry in entries if entry.is_dir()]
    files: list[str] = []
    others = [e.name for e in entries if e.is_file() and Path(e.name).suffix.lower() in SUFFIXES]
    for name in classes:
        for entry in sorted(_walk(directory / name, name)):
            # A link that leads nowhere, or to a folder, may be called .jpg too.
            is_photo = Path(entry).suffix.lower() in SUFFIXES and (directory / entry).is_file()
            (files if is_photo else others).append(entry)
    return classes, files, others


def _walk(directory: Path, prefix: str) -> list[str]:
    found = []
    for entry in os.scandir(directory):
        if is_ignored(entry.name):
            continue
        relative = f"{prefix}/{entry.name}"
        # A linked class folder is followed, a link inside of one is not: it could lead round in a circle.
        found += _walk(Path(entry.path), relative) if entry.is_dir(follow_symlinks=False) else [relative]
    return found
