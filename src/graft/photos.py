"""The photos of a run: found, hashed, looked at once, and the damaged ones set apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graft.data.checks import Damage, apply_policy
from graft.data.folder import Digests, Folder, Split, digest_files, fingerprint
from graft.data.loader import Source
from graft.data.module import ImageSource, class_counts
from graft.features.cache import TRUNCATED, UNDECODABLE
from graft.features.compute import FeatureCache, inspect
from graft.features.extract import Extracted
from graft.features.source import FeatureSource
from graft.images import InputSpec

# (title, number of photos) -> a context whose value advances the bar
ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Photos:
    """The usable photos of a run.

    Attributes:
        splits: by name, without what `data.on_corrupt` leaves out; test is sealed.
        digests: content hashes by split, bytes [N].
        damage: what is wrong with photos, per split.
        ignored: files in class folders that are no photos, and photos beside the class folders.
        views: by split, the cached features of its photos: the views of train, one view of the others; empty
            where the run reads images.
        spec: what the backbone expects of an image.
        precision: of the features, or fp32 where the run reads images.
        computed: photos the backbone (or, without features, only the decoder) was run on.
        reused: photos whose features were there already.
        seconds: of hashing and the passes over the photos, engine start-up included.
    """

    splits: dict[str, Split]
    digests: dict[str, Digests]
    damage: tuple[Damage, ...]
    ignored: tuple[str, ...]
    views: dict[str, list[Extracted]]
    spec: InputSpec
    precision: str
    computed: int
    reused: int
    seconds: float

    def source(self, split: Split) -> Source:
        """What the batches of a split are read from, without augmentation: one of `splits`, or test opened."""
        if self.views:
            return FeatureSource(self.views[split.name][:1], split.labels())
        return ImageSource(split.paths(), split.labels(), self.spec)

    def train_source(self) -> Source | None:
        """The views of train; None where training reads images."""
        train = self.splits["train"]
        return FeatureSource(self.views["train"], train.labels()) if self.views else None

    def fingerprint(self, split: str) -> str:
        """Hex digest of the usable photos of a split."""
        return fingerprint(self.digests[split])

    def describe(self) -> dict[str, Any]:
        """Counts, fingerprints and everything left out or repaired, as plain JSON values.

        Damaged photos are named, but those of a sealed split only counted: their names tell their classes.
        """
        return {
            # test's classes are its labels, so only its size is told
            "photos": {name: len(split) for name, split in self.splits.items()},
            "classes": {name: class_counts(split) for name, split in self.splits.items() if not split.sealed},
            "fingerprints": {name: self.fingerprint(name) for name in self.splits},
            "damaged": [self._describe_damage(damage) for damage in self.damage],
            "ignored": list(self.ignored),
        }

    def _describe_damage(self, damage: Damage) -> dict[str, Any]:
        if not self.splits[damage.split].sealed:
            return asdict(damage)
        counts = {"truncated": len(damage.truncated), "undecodable": len(damage.undecodable)}
        return {"split": damage.split, **counts}


def look_at_photos(
    folder: Folder,
    cache: FeatureCache | None,
    directory: Path,
    *,
    views: int,
    plain: bool,
    seed: int,
    spec: InputSpec,
    on_corrupt: str,
    workers: int,
    progress: ProgressBar,
) -> Photos:
    """Hash every photo, pass each through the frozen backbone once, and apply `data.on_corrupt`.

    Args:
        folder: the splits.
        cache: of features; None where the run reads images, which are then only decoded once.
        directory: of cached results, for that case.
        views: augmented views of train beside the plain one.
        plain: train on the plain view too.
        seed: of the augmented views.
        spec: what the backbone expects of an image.
        on_corrupt: repair, skip or error.
        workers: threads that read and decode.
        progress: makes a bar.

    Raises:
        DataError: a damaged photo and on_corrupt=error, or a split without a usable photo.
    """
    started = time.perf_counter()
    splits = folder.splits()
    paths = [path for split in splits for path in split.paths()]
    digests = digest_files(paths, workers)
    first = _first_look(paths, digests, cache, directory, workers, progress)
    kept, damage = _apply(splits, first, on_corrupt)
    usable = {split.name: split.keep(mask) for split, mask in zip(splits, kept, strict=True)}
    hashes = _by_split(splits, digests, kept)
    rows = _by_split(splits, first.rows, kept)
    looks = {name: [first.at(mine)] for name, mine in rows.items()} if cache else {}
    augmented = _augmented(usable["train"], hashes["train"], cache, views, seed, progress) if cache else []
    if augmented:
        looks["train"] = [*(looks["train"] if plain else []), *augmented]
    return Photos(
        splits=usable,
        digests=hashes,
        damage=tuple(damage),
        ignored=folder.ignored,
        views=looks,
        spec=spec,
        precision=cache.precision if cache else "fp32",
        computed=sum(look.computed for look in [first, *augmented]),
        reused=sum(look.reused for look in [first, *augmented]),
        seconds=time.perf_counter() - started,
    )


def _first_look(
    paths: Sequence[Path],
    digests: Digests,
    cache: FeatureCache | None,
    directory: Path,
    workers: int,
    progress: ProgressBar,
) -> Extracted:
    """The plain view of every photo through the backbone, or through the decoder alone."""
    with progress("looking at photos" if cache else "checking photos", len(paths)) as advance:
        if cache:
            return cache.plain(paths, digests, advance)
        return inspect(paths, digests, directory, workers=workers, progress=advance)


def _augmented(
    train: Split, digests: Digests, cache: FeatureCache, views: int, seed: int, progress: ProgressBar
) -> list[Extracted]:
    looks = []
    for number in range(views):
        with progress(f"view {number + 1} of {views}", len(train)) as advance:
            looks.append(cache.view(number, seed, train.paths(), digests, advance))
    return looks


def _by_split(
    splits: Sequence[Split], values: NDArray[Any], kept: Sequence[NDArray[np.bool_]]
) -> dict[str, NDArray[Any]]:
    """Values of all photos, [N], as those of each split's usable photos."""
    parts = np.split(values, np.cumsum([len(split) for split in splits])[:-1])
    return {split.name: part[mask] for split, part, mask in zip(splits, parts, kept, strict=True)}


def _apply(
    splits: Sequence[Split], extracted: Extracted, on_corrupt: str
) -> tuple[list[NDArray[np.bool_]], list[Damage]]:
    status = extracted.table.status(extracted.rows)
    parts = np.split(status, np.cumsum([len(split) for split in splits])[:-1])
    decided = [
        apply_policy(split, part == TRUNCATED, part == UNDECODABLE, on_corrupt)
        for split, part in zip(splits, parts, strict=True)
    ]
    return [keep for keep, _ in decided], [damage for _, damage in decided]
