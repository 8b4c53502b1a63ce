"""A tree of photos as splits: train/, valid/ (or val/) and test/, one folder per class. No torch."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, compress

import numpy as np
from numpy.typing import NDArray

from graft.data.files import SUFFIXES, is_ignored
from graft.errors import DataError
from graft.stores import TAG_BYTES, Store, Tags

LAYOUT = "train/, valid/ (or val/) and test/, one folder per class in each"


@dataclass(frozen=True)
class Split:
    """The photos of one split, in the order of their classes and names.

    Attributes:
        name: train, valid or test.
        store: what the photos are read from.
        folder: the split's folder in the store.
        files: relative to that folder; the first part of each is its class.
        class_names: of the whole data set, in label order.
        tags: which version of each file was listed, bytes [N]; None for any.
        sealed: it gives its photos, for hashing and feature extraction, but not its labels.
    """

    name: str
    store: Store = field(compare=False)
    folder: str
    files: tuple[str, ...]
    class_names: tuple[str, ...]
    tags: Tags | None = field(default=None, compare=False)
    sealed: bool = False

    def __len__(self) -> int:
        return len(self.files)

    @property
    def location(self) -> str:
        """The split's folder as a person would type it."""
        return f"{self.store.location}/{self.folder}"

    def path(self, index: int) -> str:
        """Path or URL of a photo."""
        return f"{self.location}/{self.files[index]}"

    def read(self, index: int) -> bytes:
        """The bytes of a photo.

        Raises:
            DataError: it cannot be read, or it changed since it was listed and the store can tell.
        """
        tag = b"" if self.tags is None else bytes(self.tags[index])
        return self.store.read(f"{self.folder}/{self.files[index]}", tag)

    def labels(self) -> NDArray[np.int64]:
        """Class index of every photo, int64 [N].

        Raises:
            DataError: the split is sealed.
        """
        if self.sealed:
            raise DataError(f"the labels of {self.name} are sealed; only evaluate.py opens them")
        return self._labels

    @cached_property
    def _labels(self) -> NDArray[np.int64]:
        index = {name: number for number, name in enumerate(self.class_names)}
        return np.fromiter((index[file.partition("/")[0]] for file in self.files), np.int64, len(self.files))

    def keep(self, mask: NDArray[np.bool_]) -> Split:
        """The photos where `mask`, bool [N], is true."""
        if mask.all():
            return self
        tags = None if self.tags is None else self.tags[mask]
        return replace(self, files=tuple(compress(self.files, mask)), tags=tags)

    def opened(self) -> Split:
        """The same split with its labels; for evaluate.py alone, which counts the openings."""
        return replace(self, sealed=False)


class PhotoList:
    """The photos of several splits as one list, to be read by any thread.

    Attributes:
        splits: in their order.
        tags: of all photos, bytes [N].
        readers: reads worth having in flight at once.
    """

    def __init__(self, splits: Sequence[Split]) -> None:
        self.splits = splits
        self._ends = list(accumulate(len(split) for split in splits))
        unknown = np.zeros(0, f"S{TAG_BYTES}")
        tags = [np.zeros(len(s), f"S{TAG_BYTES}") if s.tags is None else s.tags for s in splits]
        self.tags: Tags = np.concatenate([unknown, *tags])
        self.readers = max((split.store.readers for split in splits), default=1)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, index: int) -> bytes:
        """See `Split.read`."""
        split, place = self._find(index)
        return split.read(place)

    def path(self, index: int) -> str:
        """See `Split.path`."""
        split, place = self._find(index)
        return split.path(place)

    def names_hash(self) -> str:
        """Hex digest of all names, in their order."""
        names = "\n".join(f"{split.folder}\n" + "\n".join(split.files) for split in self.splits)
        return hashlib.blake2b(names.encode(errors="surrogateescape"), digest_size=16).hexdigest()

    def _find(self, index: int) -> tuple[Split, int]:
        number = bisect_right(self._ends, index)
        return self.splits[number], index - (self._ends[number - 1] if number else 0)


@dataclass(frozen=True)
class Folder:
    """The splits found below a root; `test` is None where there is none.

    `ignored` are files in class folders that are no photos, and photos beside the class folders, as SPLIT/...
    `folders` are the class folders of each split, also those without a photo.
    """

    location: str
    class_names: tuple[str, ...]
    train: Split
    valid: Split
    test: Split | None
    ignored: tuple[str, ...]
    folders: dict[str, tuple[str, ...]]

    def splits(self) -> list[Split]:
        """train, valid and, where there is one, test."""
        return [self.train, self.valid, *([self.test] if self.test else [])]


def scan(store: Store, hint: str = "", key: str = "data.root") -> Folder:
    """Find the splits and classes of a tree of photos. Class order is that of the sorted folder names.

    Args:
        store: with train/, valid/ or val/, and perhaps test/.
        hint: what to tell a person when nothing is there.
        key: what the place is the value of, for messages.

    Raises:
        DataError: the root, train/ or valid/ is missing, a split has no photos, or there are not two classes.
    """
    places = _places(store, hint, key)
    folders = {name: _classes(store, place) for name, place in places.items()}
    class_names = tuple(sorted({name for classes in folders.values() for name in classes}))
    splits, ignored = {}, []
    for name, place in places.items():
        files, tags, others = _photos(store, place, folders[name])
        if not files:
            accepted = ", ".join(sorted(SUFFIXES))
            raise DataError(f"{store.location}/{place} has no photos; accepted are {accepted} in class folders")
        splits[name] = Split(name, store, place, files, class_names, tags, sealed=name == "test")
        ignored += [f"{name}/{other}" for other in others]
    if len(class_names) < 2:
        raise DataError(f"{key}={store.location}: one class ({class_names[0]}); accepted is at least two")
    return Folder(
        store.location, class_names, splits["train"], splits["valid"], splits.get("test"), tuple(ignored), folders
    )


def class_names(store: Store, hint: str = "", key: str = "data.root") -> tuple[str, ...]:
    """Class names in label order, from the folders alone: no photo is listed.

    Raises:
        DataError: as `scan`.
    """
    places = _places(store, hint, key)
    return tuple(sorted({name for place in places.values() for name in _classes(store, place)}))


def _places(store: Store, hint: str, key: str) -> dict[str, str]:
    """Split -> its folder in the store."""
    there = set(store.folders())
    if not there & {"train", "valid", "val", "test"}:
        if not there:
            advice = hint or f"accepted is a folder with {LAYOUT}"
            raise DataError(f"{key}={store.location} is not there, or has no folders; {advice}")
        raise DataError(_no_layout(store, "train", key))
    if {"valid", "val"} <= there:
        raise DataError(f"{key}={store.location} has both valid/ and val/; accepted is one of them")
    places = {"train": "train", "valid": "val" if "val" in there else "valid", "test": "test"}
    for name in ("train", "valid"):
        if places[name] not in there:
            raise DataError(_no_layout(store, name, key))
    return {name: place for name, place in places.items() if place in there}


def _no_layout(store: Store, missing: str, key: str) -> str:
    return (
        f"{key}={store.location} has no {missing}/ folder; accepted is {LAYOUT}; "
        "`python -m graft.data split SRC DST` makes them from one folder per class"
    )


def _classes(store: Store, place: str) -> tuple[str, ...]:
    return tuple(name for name in store.folders(place) if not is_ignored(name))


def _photos(store: Store, place: str, classes: Sequence[str]) -> tuple[tuple[str, ...], Tags, list[str]]:
    """Photos in the order of their classes and names, their tags, and what is ignored by name."""
    listing = store.list(place)
    number = {name: position for position, name in enumerate(classes)}
    others = [name for name in listing.odd if not _is_hidden(name) and ("/" in name or _is_photo(name))]
    of_class = np.full(len(listing.names), -1, np.int64)
    for index, name in enumerate(listing.names):
        if _is_hidden(name):
            continue
        folder, slash, _ = name.partition("/")
        if slash and _is_photo(name):
            of_class[index] = number.get(folder, -1)
        elif slash or _is_photo(name):
            others.append(name)
    # Names are sorted as whole strings, in which "a b/1" comes before "a/1": classes come first here.
    order = np.argsort(of_class, kind="stable")[np.count_nonzero(of_class < 0) :]
    return tuple(listing.names[at] for at in order), listing.tags[order], sorted(others)


def _is_photo(name: str) -> bool:
    _, dot, suffix = name.rpartition(".")
    return f"{dot}{suffix}".lower() in SUFFIXES


def _is_hidden(name: str) -> bool:
    # Almost every name is spared the look at its parts.
    return (name[0] == "." or "/." in name or "__" in name or "humbs" in name.lower()) and any(
        is_ignored(part) for part in name.split("/")
    )
