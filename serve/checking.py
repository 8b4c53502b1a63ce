"""`python -m serve check`: whether a model answers as it must."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from serve.archive import opened
from serve.arguments import Arguments, bundle_of, read_arguments
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


@contextmanager
def load_model(arguments: Arguments) -> Iterator[ServedModel]:
    """The model that the command line names; that of an archive lives as long as the context."""
    config = arguments.config
    with opened(bundle_of(arguments)) as folder:
        yield ServedModel.load(
            folder, engine=config.engine.value, precision=config.precision.value, threads=config.threads
        )
