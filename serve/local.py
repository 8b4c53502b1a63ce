"""`python -m serve local`: the model of a bundle answers over HTTP, from its first second on.

Only what the command line and an archive need is imported at once. The model is unpacked and loaded by one thread
while another imports the server: each waits a lot for what the other does not need.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def serve_locally(argv: Sequence[str]) -> None:
    """Answer over HTTP until SIGTERM or Ctrl-C."""
    arguments = read_arguments(argv, places=("bundle",))
    bundle = bundle_of(arguments)
    with ThreadPoolExecutor(1, "load") as pool:
        loading = pool.submit(load_to_serve, arguments.config, bundle)
        from serve.server import run

        run(arguments.config, loading.result)


def load_to_serve(config: ServeConfig, bundle: Path) -> ServedModel:
    """The model as the server runs it, warm, and checked by its first parity samples.

    Raises:
        RunError: there is no whole model, or it does not reproduce them.
        ConfigError: it does not offer the engine or the precision.
    """
    layout = lay_out(config.mode.value, config.threads)
    with opened(bundle) as folder:
        from serve.model import ServedModel

        model = ServedModel.load(
            folder,
            engine=config.engine.value,
            precision=config.precision.value,
            threads=layout.threads,
            streams=layout.streams,
        )
        model.check_parity(SAMPLES_AT_START)
    return model
