"""The sealed test split: the ledger against crashes and company, and who may open it."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from graft.evaluate import open_test


def opened(ledger: Path, run_id: str, config_hash: str = "c0", data_fingerprint: str = "d0") -> int:
    return open_test(ledger, data_fingerprint=data_fingerprint, config_hash=config_hash, run_id=run_id)


def test_an_opening_is_one_json_line(tmp_path: Path) -> None:
    ledger = tmp_path / "cache" / "test_openings.jsonl"
    assert opened(ledger, "runs/ä") == 1
    entry = json.loads(ledger.read_text())
    assert datetime.fromisoformat(entry.pop("time")).utcoffset() == timedelta(0)
    assert entry == {"data_fingerprint": "d0", "config_hash": "c0", "run_id": "runs/ä"}


def test_openings_are_counted_by_data_and_a_resumed_run_once(tmp_path: Path) -> None:
    ledger = tmp_path / "openings.jsonl"
    assert opened(ledger, "a") == 1
    assert opened(ledger, "b") == 2
    assert opened(ledger, "a") == 2
    assert opened(ledger, "a", config_hash="c1") == 3
    assert opened(ledger, "a", data_fingerprint="d1") == 1
    assert len(ledger.read_text().splitlines()) == 5


@pytest.mark.parametrize("torn", [b'{"time": "2024-01-01T00:00', b'{"time": "\xc3', b"{", b"17"])
def test_a_torn_last_line_loses_no_other(tmp_path: Path, torn: bytes) -> None:
    ledger = tmp_path / "openings.jsonl"
    opened(ledger, "a")
    opened(ledger, "b")
    with ledger.open("ab") as file:
        file.write(torn)
    assert opened(ledger, "c") == 3
    assert opened(ledger, "d") == 4
    assert torn in ledger.read_bytes().split(b"\n")


def test_a_last_line_that_lacks_only_its_end_counts(tmp_path: Path) -> None:
    ledger = tmp_path / "openings.jsonl"
    opened(ledger, "a")
    ledger.write_bytes(ledger.read_bytes().rstrip(b"\n"))
    assert opened(ledger, "b") == 2
    assert opened(ledger, "c") == 3


@pytest.mark.slow
def test_four_processes_at_once_lose_no_opening(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["graft.evaluate"])  # torch is imported once, not four times
    ledger, runs = tmp_path / "openings.jsonl", [f"run{i}" for i in range(80)]
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        counts = list(pool.map(partial(opened, ledger), runs))
    assert sorted(counts) == list(range(1, 81))
    assert sorted(json.loads(line)["run_id"] for line in ledger.read_text().splitlines()) == sorted(runs)
