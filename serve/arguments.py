"""The command line of `python -m serve`: photos and flags, KEY=VALUE of serve.*, and places such as bundle=PATH."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from graft.command import value_of
from graft.config import ServeConfig, check_value
from graft.errors import ConfigError

CONF = Path(__file__).resolve().parents[1] / "conf" / "serve" / "default.yaml"
KEY = "serve."


@dataclass(frozen=True)
class Arguments:
    """What a command was given.

    Attributes:
        words: neither flags nor KEY=VALUE: photos, for instance.
        flags: such as --json.
        places: key -> path, of the keys that the command takes beside serve.*.
        config: conf/serve/default.yaml with the command line's values.
    """

    words: tuple[str, ...]
    flags: frozenset[str]
    places: dict[str, Path]
    config: ServeConfig


def read_arguments(
    argv: Sequence[str], *, places: Sequence[str], flags: Sequence[str] = (), words: bool = False
) -> Arguments:
    """Read what stands behind the name of a command.

    Args:
        argv: the arguments; a path that holds a `=` is a word where it exists.
        places: keys of paths that it takes.
        flags: that it takes.
        words: whether it takes others.

    Raises:
        ConfigError: an argument is not accepted.
    """
    found_words, found_places, values = [], {}, {}
    for argument in argv:
        key, equals, text = argument.partition("=")
        if argument.startswith("-"):
            if argument not in flags:
                raise ConfigError(f"{argument} is not accepted; accepted: {_accepted(places, flags)}")
        elif key in places and equals:
            found_places[key] = Path(text).expanduser()
        elif key.startswith(KEY) and equals:
            values[key.removeprefix(KEY)] = value_of(key, text)
        elif words:
            found_words.append(argument)
        else:
            raise ConfigError(f"{argument} is not accepted; accepted: {_accepted(places, flags)}")
    given = frozenset(argument for argument in argv if argument.startswith("-"))
    return Arguments(tuple(found_words), given, found_places, _configure(values))


def _configure(values: dict[str, object]) -> ServeConfig:
    merged = OmegaConf.merge(OmegaConf.structured(ServeConfig), OmegaConf.load(CONF), values)
    config = OmegaConf.to_object(merged)
    assert isinstance(config, ServeConfig)
    for name, value in vars(config).items():
        check_value(KEY + name, value)
    return config


def _accepted(places: Sequence[str], flags: Sequence[str]) -> str:
    return ", ".join([*(f"{place}=PATH" for place in places), *flags, "serve.KEY=VALUE"])
