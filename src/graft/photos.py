"""The photos of a run: found, hashed, looked at once, and the damaged ones set apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graft.data.checks import Damage, apply_policy
from graft.data.digests import DigestIndex, Digests, fingerprint
from graft.data.findings import Finding
from graft.data.folder import Folder, PhotoList, Split
from graft.data.loader import Source
from graft.data.module import ImageSource, class_counts
from graft.doubts import Features
from graft.features.cache import TRUNCATED, UNDECODABLE
from graft.features.compute import FeatureCache, inspect
from graft.features.extract import Extracted
from graft.features.source import FeatureSource
from graft.inputs import InputSpec
from graft.inspection import inspect_photos
from graft.processes import ALONE, Team

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
        findings: what the checks of docs/data-checks.md found.
        plain: by split, the cached features of its photos as they are; empty where the run reads images.
        views: by split, what is trained and measured on: the views of train, the plain one of the others; likewise.
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
    findings: tuple[Finding, ...]
    plain: dict[str, Extracted]
    views: dict[str, list[Extracted]]
    spec: InputSpec
    precision: str
    computed: int
    reused: int
    seconds: float

    def with_findings(self, more: Sequence[Finding]) -> Photos:
        """The same photos, of which something else is known."""
        return replace(self, findings=(*self.findings, *more))

    def source(self, split: Split) -> Source:
        """What the batches of a split are read from, without augmentation: one of `splits`, or test opened."""
        if self.views:
            return FeatureSource(self.views[split.name][:1], split.labels())
        return ImageSource(split, self.spec)

    def train_source(self) -> Source | None:
        """The views of train; None where training reads images."""
        train = self.splits["train"]
        return FeatureSource(self.views["train"], train.labels()) if self.views else None

    def features(self, split: str, most: int | None = None) -> Features | None:
        """Features of the photos of a split as they are, of `most` at random; None where the run reads images."""
        if split not in self.plain:
            return None
        view, labels = self.plain[split], self.splits[split].labels()
        if most is None or most >= len(labels):
            return Features(view.table.features(view.rows), labels)
        some = np.sort(np.random.default_rng(0).choice(len(labels), most, replace=False))
        return Features(view.table.features(view.rows[some]), labels[some])

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
            "findings": [asdict(finding) for finding in self.findings],
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
    on_leak: str = "warn",
    workers: int,
    progress: ProgressBar,
    index: DigestIndex | None = None,
    team: Team = ALONE,
) -> Photos:
    """Pass every photo through the frozen backbone once, hash it on the way, and apply `data.on_corrupt`.

    Args:
        folder: the splits.
        cache: of features; None where the run reads images, which are then only decoded once.
        directory: of cached results, for that case.
        views: augmented views of train beside the plain one.
        plain: train on the plain view too.
        seed: of the augmented views.
        spec: what the backbone expects of an image.
        on_corrupt: repair, skip or error.
        on_leak: warn or error.
        workers: threads that decode.
        progress: makes a bar.
        index: of content hashes; None reads every photo.
        team: the processes that share the work.

    Raises:
        DataError: a photo cannot be read, a damaged photo and on_corrupt=error, or a split without a usable photo.
    """
    started = time.perf_counter()
    splits = folder.splits()
    photos = PhotoList(splits)
    with progress("looking at photos" if cache else "checking photos", len(photos)) as advance:
        if cache:
            first = cache.plain(photos, advance)
        else:
            first = inspect(photos, directory, workers=workers, progress=advance, index=index, team=team)
    status = _parts(splits, first.table.status(first.rows))
    kept, damage = _apply(splits, status, on_corrupt)
    usable = {split.name: split.keep(mask) for split, mask in zip(splits, kept, strict=True)}
    hashes = _by_split(splits, first.digests, kept)
    rows = _by_split(splits, first.rows, kept)
    looks = {name: [first.at(mine, hashes[name])] for name, mine in rows.items()} if cache else {}
    found = inspect_photos(folder, _parts(splits, first.digests), status, on_corrupt=on_corrupt, on_leak=on_leak)
    plain_view = {name: look[0] for name, look in looks.items()}
    augmented = _augmented(usable["train"], hashes["train"], cache, views, seed, progress) if cache else []
    if augmented:
        looks["train"] = [*(looks["train"] if plain else []), *augmented]
    return Photos(
        splits=usable,
        digests=hashes,
        damage=tuple(damage),
        ignored=folder.ignored,
        findings=tuple(found),
        plain=plain_view,
        views=looks,
        spec=spec,
        precision=cache.precision if cache else "fp32",
        computed=sum(look.computed for look in [first, *augmented]),
        reused=sum(look.reused for look in [first, *augmented]),
        seconds=time.perf_counter() - started,
    )


def _augmented(
    train: Split, digests: Digests, cache: FeatureCache, views: int, seed: int, progress: ProgressBar
) -> list[Extracted]:
    looks = []
    for number in range(views):
        with progress(f"view {number + 1} of {views}", len(train)) as advance:
            looks.append(cache.view(number, seed, PhotoList([train]), digests, advance))
    return looks


def _parts(splits: Sequence[Split], values: NDArray[Any]) -> list[NDArray[Any]]:
    """Values of all photos, [N], by split."""
    return np.split(values, np.cumsum([len(split) for split in splits])[:-1])


def _by_split(
    splits: Sequence[Split], values: NDArray[Any], kept: Sequence[NDArray[np.bool_]]
) -> dict[str, NDArray[Any]]:
    """Values of all photos, [N], as those of each split's usable photos."""
    return {split.name: part[mask] for split, part, mask in zip(splits, _parts(splits, values), kept, strict=True)}


def _apply(
    splits: Sequence[Split], status: Sequence[NDArray[np.uint8]], on_corrupt: str
) -> tuple[list[NDArray[np.bool_]], list[Damage]]:
    decided = [
        apply_policy(split, part == TRUNCATED, part == UNDECODABLE, on_corrupt)
        for split, part in zip(splits, status, strict=True)
    ]
    return [keep for keep, _ in decided], [damage for _, damage in decided]
