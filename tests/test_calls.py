"""Clients of AWS: one for each service, made by one thread at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from graft.launcher import calls


@pytest.fixture(autouse=True)
def no_clients() -> Iterator[None]:
    calls.client.cache_clear()
    yield
    calls.client.cache_clear()


def test_clients_are_made_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    being_made: list[str] = []

    def make(service: str, **_: Any) -> str:
        being_made.append(service)
        time.sleep(0.01)
        assert being_made == [service]
        being_made.remove(service)
        return service

    monkeypatch.setattr("boto3.client", make)
    services = ["s3", "sts", "logs", "sagemaker"]
    with ThreadPoolExecutor(len(services)) as pool:
        assert list(pool.map(lambda service: calls.client(service, "us-east-1"), services)) == services
