"""All that is checked in the photos of a run, from their names, contents and features: docs/data-checks.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graft.data import findings
from graft.data.digests import UNKNOWN, DigestIndex, Digests
from graft.data.findings import Contents, Finding
from graft.data.folder import Folder, PhotoList, Split
from graft.features import neighbours
from graft.features.cache import TRUNCATED, UNDECODABLE
from graft.features.compute import inspect
from graft.features.extract import Extracted
from graft.storage import write_text

NEIGHBOURS_VERSION = 1  # raised whenever the same features and photos give other pairs


def inspect_photos(
    folder: Folder, digests: Sequence[Digests], status: Sequence[NDArray[np.uint8]], *, on_corrupt: str, on_leak: str
) -> list[Finding]:
    """What names and bytes tell: missing classes, other files, damage, the same bytes twice.

    Args:
        folder: the splits.
        digests: content hashes of each split's photos, bytes [N].
        status: OK, TRUNCATED or UNDECODABLE of each, uint8 [N].
        on_corrupt: what becomes of damaged photos.
        on_leak: what it means when a photo is in two splits.
    """
    splits = [_contents(split, mine) for split, mine in zip(folder.splits(), digests, strict=True)]
    found = [
        *findings.imbalance(splits[0], folder.class_names),
        *findings.few_photos(splits[0], folder.class_names),
        *findings.ignored_files(folder.ignored),
    ]
    for split, state in zip(splits, status, strict=True):
        found += findings.missing_class(split, folder.class_names)
        found += findings.empty_folder(split, folder.folders[split.name])
        found += findings.not_an_image(split, state == UNDECODABLE)
        found += findings.truncated(split, state == TRUNCATED, on_corrupt)
    # Empty files and error pages have the same bytes too: what is no photo is in no two splits.
    known = [
        replace(split, digests=np.where(state == UNDECODABLE, UNKNOWN, split.digests))
        for split, state in zip(splits, status, strict=True)
    ]
    return found + findings.identical(known, on_leak)


def check_folder(folder: Folder, cache: Path, *, workers: int, progress: Callable[[int], None]) -> list[Finding]:
    """All that is found without a backbone: every photo is decoded once, unless an earlier look at it is kept.

    Args:
        folder: the splits.
        cache: directory of what all runs share.
        workers: decoding threads.
        progress: told of the photos that are done.

    Raises:
        DataError: a photo cannot be read.
    """
    splits = folder.splits()
    photos = PhotoList(splits)
    looked = inspect(photos, cache / "features", workers=workers, progress=progress, index=DigestIndex(cache))
    ends = np.cumsum([len(split) for split in splits])[:-1]
    status = np.split(looked.table.status(looked.rows), ends)
    return inspect_photos(folder, np.split(looked.digests, ends), status, on_corrupt="repair", on_leak="warn")


def inspect_features(
    splits: Sequence[Split],
    views: dict[str, Extracted],
    *,
    features: str,
    fit: str,
    workers: int,
    on_leak: str,
    directory: Path,
) -> list[Finding]:
    """What the features tell: the same picture in two splits. Kept, for the comparison takes seconds.

    Args:
        splits: the usable photos; train first.
        views: the plain view of each split's photos.
        features: what tells these features from those of other backbones.
        fit: how a photo becomes a square.
        workers: threads.
        on_leak: what it means when a picture is in two splits.
        directory: where results are kept, for all runs.
    """
    found = []
    for position, query in enumerate(splits):
        for reference in splits[:position]:
            mine, other = views[query.name], views[reference.name]
            path = directory / f"{_key(f'{features} {fit}', mine.digests, other.digests)}.json"
            pairs, checked = _kept(path)
            if pairs is None:
                sides = (_gallery(query, mine), _gallery(reference, other))
                result = neighbours.near_duplicates(*sides, fit=fit, workers=workers)
                pairs, checked = [(pair.query, pair.reference) for pair in result.pairs], result.checked
                write_text(path, json.dumps({"pairs": pairs, "checked": checked}))
            both = _contents(query, mine.digests), _contents(reference, other.digests)
            found += findings.near_duplicates(*both, pairs, checked=checked, on_leak=on_leak)
    return found


def _contents(split: Split, digests: Digests) -> Contents:
    return Contents(split.name, split.files, digests, None if split.sealed else split.labels())


def _gallery(split: Split, view: Extracted) -> neighbours.Gallery:
    return neighbours.Gallery(len(split), lambda rows: view.table.features(view.rows[rows]), split.read)


def _key(how: str, query: Digests, reference: Digests) -> str:
    """What the pairs depend on: the photos in their order, and how they are compared."""
    key = hashlib.blake2b(f"{NEIGHBOURS_VERSION} {how} {len(query)}".encode(), digest_size=8)
    key.update(query.tobytes())
    key.update(reference.tobytes())
    return key.hexdigest()


def _kept(path: Path) -> tuple[list[tuple[int, int]] | None, int]:
    try:
        content = json.loads(path.read_text())
        return [(int(mine), int(other)) for mine, other in content["pairs"]], int(content["checked"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, 0
