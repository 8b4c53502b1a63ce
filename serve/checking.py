"""`python -m serve check` and `local`: whether a model answers as it must, and answering over HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from graft.errors import ConfigError
from serve.archive import opened
from serve.arguments import Arguments, read_arguments
from serve.model import ServedModel


def check(argv: Sequence[str]) -> None:
    """Run the parity samples of a model."""
    arguments = read_arguments(argv, places=("bundle",))
    with load_model(arguments) as model:
        difference = model.check_parity()
        print(
            f"{bundle_of(arguments)}: {len(model.labels)} classes, {model.engine.precision}, reproduces its parity "
            f"samples (they differ by {difference:.1g})"
        )


def serve_locally(argv: Sequence[str]) -> None:
    """Answer over HTTP until SIGTERM or Ctrl-C."""
    arguments = read_arguments(argv, places=("bundle",))
    from serve.server import run

    with opened(bundle_of(arguments)) as folder:
        run(arguments.config, folder)


@contextmanager
def load_model(arguments: Arguments) -> Iterator[ServedModel]:
    """The model that the command line names; that of an archive lives as long as the context."""
    config = arguments.config
    with opened(bundle_of(arguments)) as folder:
        yield ServedModel.load(
            folder, engine=config.engine.value, precision=config.precision.value, threads=config.threads
        )


def bundle_of(arguments: Arguments) -> Path:
    """bundle=PATH, or that of the run that finished last below runs/: its archive where it was packed.

    Raises:
        ConfigError: there is none.
    """
    if "bundle" in arguments.places:
        return arguments.places["bundle"]
    manifests = sorted(Path("runs").glob("*/bundle/manifest.json"), key=lambda path: path.stat().st_mtime)
    if not manifests:
        raise ConfigError("bundle is not set, and runs/ holds none; give bundle=PATH, of a bundle or a model.tar.gz")
    run_dir = manifests[-1].parents[1]
    packed = run_dir / "model.tar.gz"
    return packed if packed.exists() else run_dir / "bundle"
