"""`python -m serve local`: the model of a bundle answers over HTTP, from its first second on.

Only what the command line and an archive need is imported at once. The model is unpacked first, which beside imports
would take twice as long, for it comes in thousands of parts and the interpreter is waited for after each. Then it is
loaded by one thread while another imports the server: each waits a lot for what the other does not need.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from graft.config import ServeConfig
from serve.archive import opened
from serve.arguments import bundle_of, read_arguments
from serve.layout import lay_out

if TYPE_CHECKING:
    from serve.model import ServedModel

# Of the 16 parity samples, those that a server runs before it is healthy. The network's SHA-256 has been compared by
# then, and an engine that fails at it fails at any of them; all of ResNet-50's take 0.9 s in fp32 on two cores.
# The others are run while it answers already; `pack` and `check` run all at once.
SAMPLES_AT_START = 4
# /ping is to answer, if only that the model is being loaded, while a large archive is unpacked.
LONGEST_UNPACKING_S = 2.0


def serve_locally(argv: Sequence[str]) -> None:
    """Answer over HTTP until SIGTERM or Ctrl-C."""
    arguments = read_arguments(argv, places=("bundle",))
    bundle = bundle_of(arguments)
    with ThreadPoolExecutor(1, "load") as pool:
        under_way = threading.Event()
        loading = pool.submit(load_to_serve, arguments.config, bundle, under_way.set)
        loading.add_done_callback(lambda _: under_way.set())  # it may have failed before
        under_way.wait(LONGEST_UNPACKING_S)
        from serve.server import run

        run(arguments.config, loading.result)


def load_to_serve(config: ServeConfig, bundle: Path, under_way: Callable[[], object] = lambda: None) -> ServedModel:
    """The model as the server runs it, warm, and checked by its first parity samples.

    Args:
        config: of the server.
        bundle: a run's, or a model.tar.gz.
        under_way: called once all is unpacked and imported, and what is left to do is the engine's.

    Raises:
        RunError: there is no whole model, or it does not reproduce them.
        ConfigError: it does not offer the engine or the precision.
    """
    layout = lay_out(config.mode.value, config.threads)
    with opened(bundle) as folder:
        from graft.artifacts import EXPORTED_NETWORK
        from serve.model import ServedModel

        if (folder / EXPORTED_NETWORK).exists():
            from graft.openvino_core import core

            core()
        under_way()
        model = ServedModel.load(
            folder,
            engine=config.engine.value,
            precision=config.precision.value,
            threads=layout.threads,
            streams=layout.streams,
        )
        model.check_parity(SAMPLES_AT_START)
    return model
