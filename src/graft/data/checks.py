"""What is wrong with photos, and what the policy `data.on_corrupt` makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graft.data.folder import Split
from graft.errors import DataError


@dataclass(frozen=True)
class Damage:
    """Photos of one split that are not whole, relative to the split's folder."""

    split: str
    truncated: tuple[str, ...]
    undecodable: tuple[str, ...]


def apply_policy(
    split: Split, truncated: NDArray[np.bool_], undecodable: NDArray[np.bool_], on_corrupt: str
) -> tuple[NDArray[np.bool_], Damage]:
    """Which photos of a split are used, bool [N], and what is wrong with the others.

    Args:
        split: the photos.
        truncated: bool [N]; their missing part is grey.
        undecodable: bool [N].
        on_corrupt: repair (leave out the undecodable), skip (both) or error.

    Raises:
        DataError: a photo is damaged and the policy is `error`, or nothing is left.
    """
    damage = Damage(split.name, _names(split, truncated), _names(split, undecodable))
    if on_corrupt == "error" and (truncated | undecodable).any():
        bad = [*damage.undecodable, *damage.truncated]
        listed = ", ".join(f"{split.location}/{file}" for file in bad[:5])
        raise DataError(
            f"data.on_corrupt=error and {len(bad)} damaged photo{'s' if len(bad) > 1 else ''} in {split.name}: {listed}"
            f"{', ...' if len(bad) > 5 else ''}; accepted: mend them, or data.on_corrupt=repair or skip"
        )
    keep = ~undecodable if on_corrupt == "repair" else ~(undecodable | truncated)
    if not keep.any():
        raise DataError(
            f"{split.location}: data.on_corrupt={on_corrupt} leaves none of its {len(split)} photos: "
            f"{len(damage.undecodable)} cannot be decoded, {len(damage.truncated)} are truncated"
        )
    return keep, damage


def _names(split: Split, mask: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(split.files[index] for index in np.flatnonzero(mask))
