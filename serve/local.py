"""`python -m serve local`: the model of a bundle answers over HTTP, from its first second on.

Only what the command line and an archive need is imported at once. A process of its own unpacks the model while the
engine is imported; then one thread loads it while another imports the server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from graft.config import ServeConfig
from graft.signals import exit_when_told
from graft.startup import without_collecting
from serve.archive import opened_meanwhile
from serve.arguments import bundle_of, read_arguments
from serve.layout import lay_out

if TYPE_CHECKING:
    from serve.model import ServedModel

# Of the 16 parity samples, those that a server runs before it is healthy: at the first the engine packs its weights,
# and the second is computed from what it packed. The network's SHA-256 has been compared by then, and an engine that
# fails at it fails at any of them; all of ResNet-50's take 1 s in fp32 on two cores.
# The others are run while it answers already; `pack` and `check` run all at once.
SAMPLES_AT_START = 2


def serve_locally(argv: Sequence[str]) -> None:
    """Answer over HTTP until SIGTERM or Ctrl-C."""
    with ThreadPoolExecutor(1, "load") as pool:
        with exit_when_told(), without_collecting(), ExitStack() as opening:
            arguments = read_arguments(argv, places=("bundle",))
            bundle = bundle_of(arguments)
            unpacked = opening.enter_context(opened_meanwhile(bundle))
            import_engine(bundle)
            loading = pool.submit(load_to_serve, arguments.config, unpacked, opening.pop_all())
            from serve.server import run
        run(arguments.config, loading.result)


def import_engine(bundle: Path) -> None:
    """Import what loads the model; OpenVINO only where there is something for it: torch runs a run's bundle/."""
    from graft.artifacts import EXPORTED_NETWORK
    from graft.openvino_core import core
    from serve import model  # noqa: F401

    if bundle.is_file() or (bundle / EXPORTED_NETWORK).exists():
        core()


def load_to_serve(
    config: ServeConfig, unpacked: Callable[[], Path], opening: AbstractContextManager[object]
) -> ServedModel:
    """The model as the server runs it, warm, and checked by its first parity samples.

    Args:
        config: of the server.
        unpacked: gives the folder of the model, once it is there.
        opening: of that folder; left once the model is loaded, whatever happens.

    Raises:
        RunError: there is no whole model, or it does not reproduce them.
        ConfigError: it does not offer the engine or the precision.
    """
    from serve.model import ServedModel

    layout = lay_out(config.mode.value, config.threads)
    with opening:
        model = ServedModel.load(
            unpacked(),
            engine=config.engine.value,
            precision=config.precision.value,
            threads=layout.threads,
            streams=layout.streams,
        )
        model.check_parity(SAMPLES_AT_START)
    return model
