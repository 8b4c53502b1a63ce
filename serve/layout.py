"""How the threads of a server are laid out on the cores of its process."""

from __future__ import annotations

from dataclasses import dataclass

from graft.environment import available_cores


@dataclass(frozen=True)
class Layout:
    """Threads: of the engine in all, its calls side by side, of decoding."""

    threads: int
    streams: int
    decoders: int


def lay_out(mode: str, threads: int | None, cores: int | None = None) -> Layout:
    """Threads for `serve.mode` (latency or throughput) and `serve.threads` on the cores of this process.

    docs/decisions/0017 has the measurements: more threads than cores cost throughput, never gain any.
    """
    cores = cores or available_cores()
    threads = threads or cores
    return Layout(threads, threads if mode == "throughput" else 1, decoders=cores)
