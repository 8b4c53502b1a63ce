"""Content hashes of photos, and the index of them by the tags of their files."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from graft.data.digests import UNKNOWN, DigestIndex, Digests, digest, fingerprint
from graft.shards import JOIN_FROM, Shards
from graft.stores import Tags
from tests.composing import ROOT


def tags_of(*names: str) -> Tags:
    return np.array([name.encode() for name in names], "S56")


def digests_of(*names: str) -> Digests:
    return np.array([digest(name.encode()) for name in names], "S16")


def test_a_digest_is_blake2b_of_the_bytes() -> None:
    known = "cae66941d9efbd404e4d88758ea67670"  # b2sum -l 128 of nothing
    assert digest(b"").hex() == known
    for number in range(600):
        data = b"%d" % number
        assert digest(data) == hashlib.blake2b(data, digest_size=16).digest()


def test_a_digest_that_ends_in_a_zero_byte_is_one_among_others() -> None:
    ending = next(data for data in (b"%d" % n for n in range(10_000)) if digest(data)[-1] == 0)
    kept = np.array([digest(ending)], "S16")
    assert bytes(kept[0]).ljust(16, b"\0") == digest(ending)
    assert (kept == np.array([digest(ending)], "S16")).all()


def test_a_fingerprint_is_of_a_set_of_photos() -> None:
    names = [str(number) for number in range(20)]
    known = fingerprint(digests_of(*names))
    assert len(known) == 32
    assert fingerprint(digests_of(*random.Random(0).sample(names, 20))) == known
    assert fingerprint(digests_of(*names[1:])) != known
    assert fingerprint(digests_of(*names, "0")) != known
    assert fingerprint(digests_of(*names[1:], "0 ")) != known
    sorted_bytes = b"".join(sorted(digest(name.encode()) for name in names))
    assert known == hashlib.blake2b(sorted_bytes, digest_size=16).hexdigest()


class TestIndex:
    def test_nothing_is_known_at_first(self, tmp_path: Path) -> None:
        found = DigestIndex(tmp_path / "cache").look_up(tags_of("a", "b", ""))
        assert (found.tolist(), found.dtype) == ([UNKNOWN] * 3, np.dtype("S16"))
        assert DigestIndex(tmp_path / "cache").look_up(tags_of()).tolist() == []

    def test_what_is_remembered_is_found_by_every_later_index(self, tmp_path: Path) -> None:
        index = DigestIndex(tmp_path / "cache")
        index.remember(tags_of("b", "a"), digests_of("B", "A"))
        DigestIndex(tmp_path / "cache").remember(tags_of("c"), digests_of("C"))
        for later in (index, DigestIndex(tmp_path / "cache")):
            found = later.look_up(tags_of("c", "x", "a", "b", "a"))
            assert found.tolist() == [*digests_of("C").tolist(), UNKNOWN, *digests_of("A", "B", "A").tolist()]

    def test_a_file_without_a_tag_is_neither_kept_nor_found(self, tmp_path: Path) -> None:
        index = DigestIndex(tmp_path)
        index.remember(tags_of("", "a", ""), digests_of("1", "A", "2"))
        assert index.look_up(tags_of("", "a")).tolist() == [UNKNOWN, *digests_of("A").tolist()]
        assert [shard["tag"].tolist() for shard in shards_of(tmp_path).open()] == [[b"a"]]
        index.remember(tags_of("", ""), digests_of("1", "2"))
        index.remember(tags_of(), digests_of())
        assert len(shards_of(tmp_path).open()) == 1

    def test_a_tag_is_compared_to_its_last_byte(self, tmp_path: Path) -> None:
        tags = np.array([b"x" * 55 + b"1", b"x" * 55 + b"2", b"x" * 55], "S56")
        DigestIndex(tmp_path).remember(tags, digests_of("1", "2", "3"))
        assert DigestIndex(tmp_path).look_up(tags).tolist() == digests_of("1", "2", "3").tolist()

    def test_many_small_shards_become_one(self, tmp_path: Path) -> None:
        names = [f"{number}" for number in range(JOIN_FROM)]
        for name in names:
            DigestIndex(tmp_path).remember(tags_of(name), digests_of(name))
        assert DigestIndex(tmp_path).look_up(tags_of(*names)).tolist() == digests_of(*names).tolist()
        assert len(list((tmp_path / "digests").glob("*.npy"))) == 1
        assert DigestIndex(tmp_path).look_up(tags_of(*names)).tolist() == digests_of(*names).tolist()

    def test_a_torn_shard_costs_its_own_photos_only(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        index = DigestIndex(tmp_path)
        index.remember(tags_of("a", "b"), digests_of("A", "B"))
        [torn] = (tmp_path / "digests").iterdir()
        index.remember(tags_of("c"), digests_of("C"))
        torn.write_bytes(torn.read_bytes()[:-1])
        assert index.look_up(tags_of("a", "b", "c")).tolist() == [UNKNOWN, UNKNOWN, *digests_of("C").tolist()]
        assert f"{torn} is damaged and was removed" in capsys.readouterr().err

    def test_two_who_use_it_do_not_meet(self, tmp_path: Path) -> None:
        """Who tidies removes unfinished shards: it must not take one that another process is writing."""
        index, done = DigestIndex(tmp_path), list[str]()
        index.look_up(tags_of("a"))

        def remember() -> None:
            index.remember(tags_of("a"), digests_of("A"))
            done.append("remembered")

        def look_up() -> None:
            index.look_up(tags_of("a"))
            done.append("looked up")

        for work in (remember, look_up):
            with FileLock(tmp_path / "digests.lock"):
                thread = threading.Thread(target=work)
                thread.start()
                time.sleep(0.1)
                assert done == []
                assert list((tmp_path / "digests").glob(".*")) == []
            thread.join()
            done.pop()
        assert index.look_up(tags_of("a")).tolist() == digests_of("A").tolist()

    @pytest.mark.slow
    def test_processes_at_once_lose_nothing(self, tmp_path: Path) -> None:
        code = """
import sys
from pathlib import Path
from tests.test_digests import *
root, number = Path(sys.argv[1]), sys.argv[2]
for turn in range(25):
    names = [f"{number}.{turn}.{n}" for n in range(3)]
    DigestIndex(root).remember(tags_of(*names), digests_of(*names))
    assert (DigestIndex(root).look_up(tags_of(*names)) == digests_of(*names)).all()
"""
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-c", code, str(tmp_path)]
        processes = [subprocess.Popen([*command, str(number)], env=environment) for number in range(3)]
        assert [process.wait(60) for process in processes] == [0, 0, 0]
        names = [f"{number}.{turn}.{n}" for number in range(3) for turn in range(25) for n in range(3)]
        assert DigestIndex(tmp_path).look_up(tags_of(*names)).tolist() == digests_of(*names).tolist()


def shards_of(root: Path) -> Shards:
    return Shards(root / "digests", np.dtype([("tag", "S56"), ("digest", "S16")]))
