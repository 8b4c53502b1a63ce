"""Near-duplicates of photos across splits: proposed by cached features, confirmed on the pixels.

Features say which few photos of the reference could be the same picture; they alone cannot tell two photos
of one scene from two of one breed. So each candidate is decoded, aligned and compared as a small picture.
docs/decisions/0008-near-duplicates.md has the measurements behind the constants.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from graft.directions import principal_directions
from graft.features.thumbnails import compare, thumbnail
from graft.images import Pixels

CANDIDATES = 5  # per query
DIMENSIONS = 256
FEWER_DIMENSIONS = 64  # where the comparison would cost too much
ROWS = 4096  # photos that the whitening is fitted on, and per block, where they are not too wide:
VALUES = 1 << 23  # of features at a time, 32 MB
QUERY_ROWS = 1024  # per block: scores of 1024 x 4096 are 16 MB
CHUNK = 65_536  # queries in memory at a time, 64 MB of whitened vectors
SAME = 0.8  # one picture has 0.87 and more, two shots of one scene 0.77 and less, on real photos
DECODED = 2048  # queries whose candidates are decoded at a time: at most 12,288 thumbnails of 4 KB

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Gallery:
    """The photos of one split, as this module reads them.

    Attributes:
        count: number of photos, N.
        vectors: indices int64 [n] in 0..N-1 -> features of the plain view, float32 [n, D].
        read: index -> the photo's bytes.
    """

    count: int
    vectors: Callable[[Rows], Floats]
    read: Callable[[int], bytes]


@dataclass(frozen=True)
class Pair:
    """One picture in both splits. `agreement`: correlation of the aligned thumbnails' detail, SAME to 1."""

    query: int
    reference: int
    agreement: float
    mirrored: bool


@dataclass(frozen=True)
class Neighbours:
    """What was found, by query and then by falling agreement, and for how many of the queries it was looked for.

    Attributes:
        pairs: confirmed on the pixels; byte-identical photos are among them.
        checked: queries compared, fewer than `queries` where max_flops was too little for all.
        queries: photos in the query split.
        candidates: pairs compared as pictures.
        dropped: candidates beyond max_candidates, the least similar ones, not compared as pictures.
    """

    pairs: tuple[Pair, ...]
    checked: int
    queries: int
    candidates: int
    dropped: int


def near_duplicates(
    query: Gallery,
    reference: Gallery,
    *,
    fit: str = "crop",
    workers: int = 1,
    seed: int = 0,
    max_flops: float = 2e12,
    max_candidates: int = 200_000,
) -> Neighbours:
    """Photos of `query` that show the same picture as one of `reference`.

    Found are copies that were re-encoded, resized, cropped by up to 10 % of a side, mirrored, made brighter,
    darker or grey, and shots of one scene that differ by no more than that. Memory stays under 300 MB.

    Args:
        query: the smaller split, for instance valid.
        reference: the larger one, for instance train.
        fit: as in InputSpec: crop compares the central squares, squash the whole photos.
        workers: threads that decode and compare.
        seed: of the sample the whitening is fitted on, and of the queries where not all are checked.
        max_flops: for comparing features; beyond it 64 dimensions are compared in place of 256, and beyond
            that only a random part of the queries.
        max_candidates: pairs compared as pictures, 5 per query wanted; one takes about 1 ms with decoding.
    """
    rng = np.random.default_rng(seed)
    if not query.count or not reference.count:
        return Neighbours((), query.count, query.count, 0, 0)
    whiten = _fit_whitening(reference, rng)
    if _flops(query.count, reference.count, whiten) > max_flops:
        whiten = whiten.narrowed(FEWER_DIMENSIONS)
    checked = min(query.count, max(int(query.count * max_flops / _flops(query.count, reference.count, whiten)), 1))
    rows = _some(query.count, checked, rng)
    chunks = [_candidates(query, reference, rows[at : at + CHUNK], whiten) for at in range(0, checked, CHUNK)]
    pairs, similarity = np.concatenate([pairs for pairs, _ in chunks]), np.concatenate([sim for _, sim in chunks])
    kept = np.sort(np.argsort(-similarity, kind="stable")[:max_candidates])
    found = _confirm(query, reference, pairs[kept], fit, workers)
    return Neighbours(tuple(found), checked, query.count, len(kept), len(pairs) - len(kept))


@dataclass(frozen=True)
class _Whitening:
    """Features as unit vectors whose directions count alike, float32 [n, d] of [n, D].

    Without it a backbone whose features mostly vary along one direction (random weights do) calls all photos alike.
    """

    mean: Floats
    basis: Floats

    def __call__(self, vectors: Floats) -> Floats:
        out = (vectors - self.mean) @ self.basis
        lengths = np.linalg.norm(out, axis=1, keepdims=True)
        white: Floats = out / np.maximum(lengths, np.float32(1e-12))
        return white

    def narrowed(self, dimensions: int) -> _Whitening:
        """The first directions alone."""
        return _Whitening(self.mean, np.ascontiguousarray(self.basis[:, :dimensions]))


def _fit_whitening(reference: Gallery, rng: np.random.Generator) -> _Whitening:
    """Principal components of a sample of standardised features, scaled to variance one."""
    width = reference.vectors(np.zeros(1, np.int64)).shape[1]
    sample = reference.vectors(_some(reference.count, min(_rows(width), reference.count), rng))
    mean, spread = sample.mean(axis=0), sample.std(axis=0)
    # A number that hardly varies is noise, and stays small; of a single photo none varies.
    spread = spread + (np.float32(0.01) * spread.mean() or np.float32(1))
    sample = (sample - mean) / spread
    # Few photos know few directions: the rest would be noise blown up to variance one.
    count = max(min(DIMENSIONS, width, len(sample) // 4), 1)
    variance, directions = principal_directions(sample, count, rng)
    scale = np.sqrt(np.maximum(variance, 1e-9 * variance[0] + 1e-12))
    return _Whitening(mean, (directions / scale).astype(np.float32) / spread[:, None])


def _rows(width: int) -> int:
    """How many photos with features of this width are held at a time."""
    return min(ROWS, max(VALUES // width, 64))


def _some(count: int, wanted: int, rng: np.random.Generator) -> Rows:
    """`wanted` of the indices 0..count-1, in their order."""
    rows = np.arange(count) if wanted == count else np.sort(rng.choice(count, wanted, replace=False))
    return rows.astype(np.int64)


def _flops(queries: int, references: int, whiten: _Whitening) -> float:
    """Of comparing all queries, the whitening of the reference for every chunk of them included."""
    width, dimensions = whiten.basis.shape
    chunks = -(-queries // CHUNK)
    return float(2 * dimensions * (queries * references + (queries + chunks * references) * width))


def _candidates(query: Gallery, reference: Gallery, rows: Rows, whiten: _Whitening) -> tuple[Rows, Floats]:
    """The nearest references of some queries: pairs (query, reference) int64 [n, 2], similarities [n]."""
    near = min(CANDIDATES, reference.count)
    step = _rows(len(whiten.mean))
    asked = np.empty((len(rows), whiten.basis.shape[1]), np.float32)
    for at in range(0, len(rows), step):
        asked[at : at + step] = whiten(query.vectors(rows[at : at + step]))
    best = np.full((len(rows), near), -np.inf, np.float32)
    index = np.full((len(rows), near), -1, np.int64)
    for start in range(0, reference.count, step):
        vectors = whiten(reference.vectors(np.arange(start, min(start + step, reference.count), dtype=np.int64)))
        for at in range(0, len(rows), QUERY_ROWS):
            part = slice(at, at + QUERY_ROWS)
            _keep_best(asked[part] @ vectors.T, start, best[part], index[part])
    return np.stack([np.repeat(rows, near), index.ravel()], axis=1), best.ravel()


def _keep_best(scores: Floats, start: int, best: Floats, index: Rows) -> None:
    """Merge the scores [q, r] of the references from `start` on into the best so far, in place, best first."""
    near = best.shape[1]
    better = np.flatnonzero(scores.max(axis=1) > best[:, -1])
    scores = scores[better]
    if scores.shape[1] > near:
        columns = np.argpartition(-scores, near - 1, axis=1)[:, :near]
    else:
        columns = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    merged = np.concatenate([best[better], np.take_along_axis(scores, columns, axis=1)], axis=1)
    owners = np.concatenate([index[better], columns + start], axis=1)
    order = np.argsort(-merged, axis=1, kind="stable")[:, :near]
    best[better], index[better] = np.take_along_axis(merged, order, 1), np.take_along_axis(owners, order, 1)


def _confirm(query: Gallery, reference: Gallery, pairs: Rows, fit: str, workers: int) -> list[Pair]:
    """Those of the pairs, sorted by query, that show the same picture."""
    found: list[Pair] = []
    _, first = np.unique(pairs[:, 0], return_index=True)
    edges = [*first[::DECODED].tolist(), len(pairs)]
    with ThreadPoolExecutor(max(workers, 1), thread_name_prefix="compare") as pool:
        for start, end in pairwise(edges):
            part = pairs[start:end]
            mine = _thumbnails(query, part[:, 0], fit, pool)
            other = _thumbnails(reference, part[:, 1], fit, pool)
            looks = pool.map(compare, *zip(*((mine[q], other[r]) for q, r in part.tolist()), strict=True))
            same = [Pair(q, r, *look) for (q, r), look in zip(part.tolist(), looks, strict=True) if look[0] >= SAME]
            found += sorted(same, key=lambda pair: (pair.query, -pair.agreement, pair.reference))
    return found


def _thumbnails(side: Gallery, rows: Rows, fit: str, pool: ThreadPoolExecutor) -> dict[int, Pixels | None]:
    wanted = np.unique(rows).tolist()
    return dict(zip(wanted, pool.map(lambda row: thumbnail(side.read(row), fit), wanted), strict=True))
