"""`python -m serve COMMAND`: pack a trained model, ask it about photos, check that it is whole, put it on SageMaker."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from graft.errors import ConfigError
from graft.terminal import plain_errors

USAGE = """python -m serve COMMAND ...

  pack run_dir=RUN [output=FILE]              export the model of a run; writes RUN/model.tar.gz
  predict PHOTO... [bundle=PATH] [--json]     what a model says of photos; of a folder, CSV
  predict PHOTO... url=URL [--json]           what a server says of them
  local [bundle=PATH] [serve.port=8080]       answer over HTTP, with a page for people at /
  check [bundle=PATH]                         whether a model answers its parity samples as it must
  bench [bundle=PATH]                         how long a photo takes here: to decode, and in the engine
  deploy run_dir=RUN endpoint=NAME            an endpoint of SageMaker; serve.plan=true says what that costs
  predict PHOTO... endpoint=NAME [--json]     what it says of photos
  list                                        what of this project is billed by the hour, how old it is, dollars
  delete endpoint=NAME                        the endpoint and all that belongs to it

PATH is a run's bundle/ or a model.tar.gz; without it, the latest of runs/. Every command takes serve.KEY=VALUE
(`python train.py --help` lists them), for instance serve.engine=torch."""


# Each imports its own: a prediction does not load what packing needs.
COMMANDS = {
    "pack": "serve.packing:pack",
    "predict": "serve.predicting:predict",
    "local": "serve.local:serve_locally",
    "check": "serve.checking:check",
    "bench": "serve.bench:bench",
    "deploy": "serve.endpoint:deploy",
    "delete": "serve.endpoint:delete",
    "list": "serve.endpoint_listing:show",
}
# Who is asked about photos, where it is not a model here.
PREDICT = {"endpoint=": "serve.endpoint_predicting:predict", "url=": "serve.url_predicting:predict"}


def main(argv: Sequence[str]) -> None:
    """Run one command; exits with 2 where a person is to mend something."""
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE)
        return
    command, *rest = argv
    with plain_errors():
        if command not in COMMANDS:
            raise ConfigError(f"{command} is no command; accepted: {', '.join(COMMANDS)}")
        place = COMMANDS[command]
        if command == "predict":
            rest = keyed(rest)
            place = next((PREDICT[key] for key in PREDICT if any(word.startswith(key) for word in rest)), place)
        module, _, name = place.partition(":")
        getattr(import_module(module), name)(rest)


def keyed(argv: Sequence[str]) -> list[str]:
    """`--url URL` and `--endpoint NAME` as url=URL and endpoint=NAME, which mean the same."""
    words: list[str] = []
    for argument in argv:
        if words and words[-1] in ("--url", "--endpoint"):
            words[-1] = f"{words[-1].removeprefix('--')}={argument}"
        else:
            words.append(argument.removeprefix("--") if argument.startswith(("--url=", "--endpoint=")) else argument)
    return words


if __name__ == "__main__":
    main(sys.argv[1:])
