"""What the checks find in the photos of a run, by name; docs/data-checks.md is the policy. No torch.

The functions are pure and take what a scan and a look at the photos know. None loops over all photos in Python,
but for the classes of a sealed split; what is named is what was found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graft.data.digests import UNKNOWN, Digests
from graft.errors import DataError

WARNING, ERROR = "warning", "error"
LEAKS = ("identical_across_splits", "near_duplicates")
IMBALANCE = 20  # photos of the largest class of train for one of the smallest
FEW = 5  # photos of a class of train
NAMED = 1000  # files listed per finding; `count` counts them all

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Contents:
    """The photos of one split as the checks see them.

    Attributes:
        name: train, valid or test.
        files: CLASS/FILE of every photo, in the order of the arrays.
        digests: content hashes, bytes S16 [N]; a photo whose hash is UNKNOWN is no one's copy.
        labels: class indices, int64 [N]; None for a sealed split, whose photos are then counted but not named.
    """

    name: str
    files: Sequence[str]
    digests: Digests
    labels: NDArray[np.int64] | None

    @property
    def sealed(self) -> bool:
        """Whether the labels, and with them the files' names, are kept back."""
        return self.labels is None

    def path(self, index: int) -> str:
        """SPLIT/CLASS/FILE."""
        return f"{self.name}/{self.files[index]}"


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        check: the name of the check in docs/data-checks.md.
        level: warning or error.
        count: of photos, classes or folders, as the message says.
        message: one sentence with the first example.
        files: SPLIT/CLASS/FILE of the photos, `A = B` where two are one; SPLIT/CLASS where a class is meant. At most
            NAMED of them, and none of a sealed split but for leaks.
    """

    check: str
    level: str
    count: int
    message: str
    files: tuple[str, ...] = ()


def missing_class(split: Contents, class_names: Sequence[str]) -> list[Finding]:
    """Classes that have no photo in this split, but a folder in one of the splits."""
    if split.labels is None:
        missing = len(class_names) - len({file.partition("/")[0] for file in split.files})
        names: list[str] = []
    else:
        counts = np.bincount(split.labels, minlength=len(class_names))
        names = [class_names[index] for index in np.flatnonzero(counts == 0).tolist()]
        missing = len(names)
    meaning = {"train": "never predicted right", "valid": "not counted when the best epoch is chosen"}
    effect = meaning.get(split.name, "no figure")
    text = f"{split.name}: {_count(missing, 'class', 'classes')} without a photo: {effect}"
    return _found("missing_class", missing, text, [f"{split.name}/{name}" for name in names])


def empty_folder(split: Contents, folders: Sequence[str]) -> list[Finding]:
    """Class folders of this split, by name, without any photo."""
    filled = {file.partition("/")[0] for file in _one_of_each_class(split)}
    empty = sorted(set(folders) - filled)
    named = [] if split.sealed else [f"{split.name}/{name}" for name in empty]
    return _found(
        "empty_folder", len(empty), f"{split.name}: {_count(len(empty), 'class folder')} without a photo", named
    )


def not_an_image(split: Contents, undecodable: Mask) -> list[Finding]:
    """Photos that cannot be decoded; `undecodable`: bool [N]."""
    return _marked("not_an_image", split, undecodable, "that cannot be decoded, left out")


def truncated(split: Contents, cut: Mask, on_corrupt: str) -> list[Finding]:
    """Photos whose end is missing; `cut`: bool [N], `on_corrupt`: what becomes of them (repair or skip)."""
    treatment = "the missing part is grey" if on_corrupt == "repair" else "left out"
    return _marked("truncated", split, cut, f"cut off at the end, {treatment}")


def ignored_files(files: Sequence[str]) -> list[Finding]:
    """Files of other kinds in the class folders, and photos beside them; `files`: SPLIT/..."""
    text = f"{_count(len(files), 'file')} ignored: no photo, or in no class folder"
    return _found("ignored_files", len(files), text, files)


def imbalance(train: Contents, class_names: Sequence[str]) -> list[Finding]:
    """Classes of train with photos, but fewer than 1/IMBALANCE of the largest class."""
    counts = _counts(train, class_names)
    small = np.flatnonzero((counts > 0) & (counts * IMBALANCE < counts.max(initial=0)))
    if not len(small):
        return []
    least, most = int(small[counts[small].argmin()]), int(counts.argmax())
    text = (
        f"train: {class_names[most]} has {counts[most]} photos and {class_names[least]} {counts[least]}; "
        f"{_count(len(small), 'class', 'classes')} with less than 1/{IMBALANCE} of the largest: "
        "data.balance=sampler or loss evens that out"
    )
    return [Finding("imbalance", WARNING, len(small), text, _classes(small, class_names))]


def few_photos(train: Contents, class_names: Sequence[str]) -> list[Finding]:
    """Classes of train with photos, but fewer than FEW."""
    counts = _counts(train, class_names)
    few = np.flatnonzero((counts > 0) & (counts < FEW))
    text = f"train: {_count(len(few), 'class', 'classes')} with fewer than {FEW} photos"
    return _found("few_photos", len(few), text, _classes(few, class_names))


def identical(splits: Sequence[Contents], on_leak: str = "warn") -> list[Finding]:
    """Photos that are the same byte for byte: across splits, under two classes, or only twice in one split.

    Each photo is set against the first of its copies, in the order of `splits`.

    Args:
        splits: train first.
        on_leak: the level of identical_across_splits: warn or error.
    """
    leaks: dict[tuple[str, str], list[str]] = {}
    conflicts: list[str] = []
    inside: Counter[str] = Counter()
    unnamed = 0
    for (first_split, first), *others in _copies(splits):
        original = first_split.path(first)
        seen = {first_split.name}
        for split, index in others:
            both = f"{split.path(index)} = {original}"
            if split.name != first_split.name:
                leaks.setdefault((split.name, first_split.name), []).append(both)
            inside[split.name] += split.name in seen
            seen.add(split.name)
            if _class_of(split, index) != _class_of(first_split, first):
                # Two photos of the sealed split are no leak: their names are kept back.
                hidden = split.sealed and first_split.sealed
                unnamed += hidden
                conflicts += [] if hidden else [both]
    return [
        *_leaks(leaks, on_leak),
        *_found(
            "label_conflict",
            len(conflicts) + unnamed,
            f"{_count(len(conflicts) + unnamed, 'photo')} under two classes: one label is wrong",
            conflicts,
        ),
        *(
            Finding(
                "identical_in_split",
                WARNING,
                count,
                f"{name}: {_count(count, 'superfluous copy', 'superfluous copies')}",
            )
            for name, count in inside.items()
            if count
        ),
    ]


def near_duplicates(
    query: Contents,
    reference: Contents,
    pairs: Sequence[tuple[int, int]],
    *,
    checked: int,
    on_leak: str = "warn",
) -> list[Finding]:
    """Photos of `query` that show the same picture as one of `reference`, without those of the same bytes.

    Args:
        query: for instance valid.
        reference: for instance train.
        pairs: (index in query, index in reference), by query and then the likest first.
        checked: how many photos of query were looked at.
        on_leak: the level: warn or error.
    """
    best: dict[int, int] = {}
    for mine, other in pairs:
        if query.digests[mine] == UNKNOWN or query.digests[mine] != reference.digests[other]:
            best.setdefault(mine, other)
    named = [f"{query.path(mine)} = {reference.path(other)}" for mine, other in best.items()]
    conflicts = sum(_class_of(query, mine) != _class_of(reference, other) for mine, other in best.items())
    text = f"{query.name}: {_count(len(best), 'photo')} with the same picture as one in {reference.name}"
    text += f" ({conflicts} under another class)" if conflicts else ""
    text += f" ({checked} of {_count(len(query.files), 'photo')} checked)" if checked < len(query.files) else ""
    level = ERROR if on_leak == "error" else WARNING
    found = _found("near_duplicates", len(best), text, named, level)
    if checked < len(query.files) and not found:
        # Never silent about what was not looked at.
        text = f"{query.name}: {checked} of {_count(len(query.files), 'photo')} checked for near-duplicates in "
        return [Finding("near_duplicates", WARNING, 0, f"{text}{reference.name}; none was found")]
    return found


def not_compared(reason: str) -> Finding:
    """Near-duplicates were not looked for."""
    return Finding("near_duplicates", WARNING, 0, f"not looked for: {reason}")


def refuse(findings: Sequence[Finding]) -> None:
    """Stop where a leak was found and data.on_leak=error.

    Raises:
        DataError: a finding has the level error.
    """
    errors = [finding.message for finding in findings if finding.level == ERROR]
    if errors:
        raise DataError(
            f"data.on_leak=error and photos are in two splits: {'; '.join(errors)}; "
            "accepted: remove them from one split (data.json names them all), or data.on_leak=warn"
        )


def summarise(findings: Sequence[Finding]) -> list[str]:
    """One line per finding for the end of a run, errors first; all names stand in data.json."""
    ordered = sorted(findings, key=lambda finding: finding.level != ERROR)
    more = {True: " (all in data.json)", False: ""}
    return [f"{finding.check}: {finding.message}{more[len(finding.files) > 1]}" for finding in ordered]


def _count(number: int, one: str, many: str = "") -> str:
    """`1 photo`, `2 photos`; what follows must hold for both."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def _found(check: str, count: int, text: str, files: Sequence[str], level: str = WARNING) -> list[Finding]:
    if not count:
        return []
    example = f", e.g. {files[0]}" if files else ""
    return [Finding(check, level, count, text + example, tuple(files[:NAMED]))]


def _marked(check: str, split: Contents, mask: Mask, text: str) -> list[Finding]:
    marked = np.flatnonzero(mask)
    named = [] if split.sealed else [split.path(index) for index in marked[:NAMED].tolist()]
    return _found(check, len(marked), f"{split.name}: {_count(len(marked), 'photo')} {text}", named)


def _leaks(leaks: dict[tuple[str, str], list[str]], on_leak: str) -> Iterator[Finding]:
    level = ERROR if on_leak == "error" else WARNING
    for (name, first), both in leaks.items():
        text = f"{name}: {_count(len(both), 'photo')} also in {first}, byte for byte"
        yield from _found("identical_across_splits", len(both), text, both, level)


def _counts(split: Contents, class_names: Sequence[str]) -> NDArray[np.int64]:
    labels = np.empty(0, np.int64) if split.labels is None else split.labels
    return np.bincount(labels, minlength=len(class_names)).astype(np.int64)


def _classes(indices: NDArray[np.intp], class_names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"train/{class_names[index]}" for index in indices.tolist())


def _one_of_each_class(split: Contents) -> Sequence[str]:
    """At least one photo of every class."""
    if split.labels is None:
        return split.files
    return [split.files[index] for index in np.unique(split.labels, return_index=True)[1].tolist()]


def _class_of(split: Contents, index: int) -> str:
    return split.files[index].partition("/")[0]


def _copies(splits: Sequence[Contents]) -> Iterator[list[tuple[Contents, int]]]:
    """Groups of photos of the same bytes, each in the order of the splits."""
    digests = np.concatenate([split.digests for split in splits])
    # Whole numbers sort ten times as fast as bytes; half a digest finds the groups, the whole one decides.
    known = np.flatnonzero(digests != UNKNOWN)
    order = known[np.argsort(np.ascontiguousarray(digests[known]).view(np.uint64)[::2], kind="stable")]
    same = digests[order[1:]] == digests[order[:-1]]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    starts = np.cumsum([0, *(len(split.digests) for split in splits)])
    for begin, end in edges.reshape(-1, 2).tolist():
        group = order[begin : end + 1]
        owners = (np.searchsorted(starts, group, side="right") - 1).tolist()
        yield [(splits[o], int(at - starts[o])) for o, at in zip(owners, group.tolist(), strict=True)]
