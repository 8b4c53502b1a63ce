"""What the processes of a run tell each other of features: content hashes, and vectors where caches differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graft.data.digests import Digests
from graft.features.cache import Space, Table
from graft.processes import Team
from graft.shards import distinct

PORTION = 4096  # vectors sent at a time


def merge_digests(digests: Digests, todo: NDArray[np.intp], team: Team) -> Digests:
    """Content hashes, bytes [N], with those that each process found: it has filled in its own part of `todo`."""
    if team.size > 1:
        found = np.zeros((len(todo), digests.itemsize), np.uint8)
        mine = slice(team.rank, None, team.size)
        found[mine] = digests[todo[mine]].view(np.uint8).reshape(-1, digests.itemsize)
        digests[todo] = team.total(found).view(digests.dtype)[:, 0]
    return digests


def fetch_from_others(digests: Digests, space: Space, team: Team, *, tends: bool) -> None:
    """Append what other processes computed and this machine's cache lacks.

    Args:
        digests: content hashes of all photos; the same in every process.
        space: where vectors are kept.
        team: the processes.
        tends: whether this process writes to the cache of its machine.
    """
    keys, table = digests[distinct(digests)], space.table()
    lacking = table.rows(keys) < 0
    wanted = np.flatnonzero(team.total(lacking.astype(np.int32)))
    for at in range(0, len(wanted), PORTION):
        portion = wanted[at : at + PORTION]
        status, vectors = _from_owners(keys[portion], table, team)
        new = lacking[portion]
        if tends and new.any():
            space.append(keys[portion][new], status[new], vectors[new])


def _from_owners(keys: Digests, table: Table, team: Team) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Status and vectors of keys, each from the process of lowest rank that has it."""
    rows = table.rows(keys)
    owners = np.zeros((team.size, len(keys)), np.int32)
    owners[team.rank] = rows >= 0
    mine = team.total(owners).argmax(0) == team.rank
    status, vectors = np.zeros(len(keys), np.uint8), np.zeros((len(keys), table.width), np.float32)
    status[mine], vectors[mine] = table.status(rows[mine]), table.features(rows[mine])
    return team.total(status), team.total(vectors)
