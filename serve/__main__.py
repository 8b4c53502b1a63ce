"""`python -m serve COMMAND`: pack a trained model, ask it about photos, check that it is whole."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from graft.errors import ConfigError
from graft.terminal import plain_errors

USAGE = """python -m serve COMMAND ...

  pack run_dir=RUN [output=FILE]              export the model of a run; writes RUN/model.tar.gz
  predict PHOTO... [bundle=PATH] [--json]     what a model says of photos; of a folder, CSV
  local [bundle=PATH] [serve.port=8080]       answer over HTTP, with a page for people at /
  check [bundle=PATH]                         whether a model answers its parity samples as it must
  bench [bundle=PATH]                         how long a photo takes here: to decode, and in the engine

PATH is a run's bundle/ or a model.tar.gz; without it, the latest of runs/. Every command takes serve.KEY=VALUE
(`python train.py --help` lists them), for instance serve.engine=torch."""


def main(argv: Sequence[str]) -> None:
    """Run one command; exits with 2 where a person is to mend something."""
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE)
        return
    command, *rest = argv
    with plain_errors():
        # Each imports its own: a prediction does not load what packing needs.
        if command == "pack":
            from serve.packing import pack as run
        elif command == "predict":
            from serve.predicting import predict as run
        elif command == "local":
            from serve.local import serve_locally as run
        elif command == "check":
            from serve.checking import check as run
        elif command == "bench":
            from serve.bench import bench as run
        else:
            raise ConfigError(f"{command} is no command; accepted: pack, predict, local, check, bench")
        run(rest)


if __name__ == "__main__":
    main(sys.argv[1:])
