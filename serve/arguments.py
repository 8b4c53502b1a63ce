"""The command line of `python -m serve`: photos and flags, KEY=VALUE of serve.*, and places such as bundle=PATH."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import EnumMeta
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from graft.config import ServeConfig, check_value, knobs
from graft.errors import ConfigError

CONF = Path(__file__).resolve().parents[1] / "conf" / "serve" / "default.yaml"
KEY = "serve."
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
# An address, a time, or a name such as ml.m5.large; Hydra's grammar takes the five words for something else than text.
_TEXT = re.compile(r"[0-9]+(\.[0-9]+){3}|[0-9]+[hd]|(?!(true|false|null|nan|inf)$)[a-z][a-z0-9]*(\.[a-z0-9]+)*")
_HOST = re.compile(r"[a-z][a-z0-9-]*(\.[a-z0-9-]+)+")


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
        elif words and (not equals or Path(argument).exists()):
            found_words.append(argument)
        elif key in places and equals:
            found_places[key] = Path(text).expanduser()
        elif key.startswith(KEY) and equals:
            values[key.removeprefix(KEY)] = value_of(key, text)
        else:
            raise ConfigError(f"{argument} is not accepted; accepted: {_accepted(places, flags)}")
    given = frozenset(argument for argument in argv if argument.startswith("-"))
    return Arguments(tuple(found_words), given, found_places, _configure(values))


def bundle_of(arguments: Arguments) -> Path:
    """bundle=PATH, or that of the run that finished last below runs/, of a search its best: packed, where it was.

    Raises:
        ConfigError: there is none.
    """
    if given := arguments.places.get("bundle"):
        if not given.exists():
            raise ConfigError(f"bundle={given} does not exist; accepted is a run's bundle/ or a model.tar.gz")
        return given
    # Of a run, of the best of a search, of a member of a sweep.
    found = (path for pattern in ("*", "*/*") for path in Path("runs").glob(f"{pattern}/bundle/manifest.json"))
    manifests = sorted(found, key=lambda path: path.stat().st_mtime)
    if not manifests:
        raise ConfigError("bundle is not set, and runs/ holds none; give bundle=PATH, of a bundle or a model.tar.gz")
    run_dir = manifests[-1].parents[1]
    packed = run_dir / "model.tar.gz"
    return packed if packed.exists() else run_dir / "bundle"


def value_of(key: str, text: str) -> Any:
    """What `text` gives a key, of its type.

    Numbers, options, true, false and null are read here; all else by Hydra's grammar, which takes longer to import
    than a server to start.

    Raises:
        ConfigError: the key is unknown, or does not accept it.
    """
    try:
        value = _plain(knobs()[key].hint, text)
    except (LookupError, ValueError):
        from graft.command import value_of as value_by_hydra

        return value_by_hydra(key, text)
    check_value(key, value)
    return value


def _plain(hint: Any, text: str) -> Any:
    """The value of a plain text; LookupError or ValueError where it is not plain."""
    if get_origin(hint) is list:
        return _hosts(text)
    kind, *null = get_args(hint) or (hint,)
    if null and text == "null":
        return None
    if isinstance(kind, EnumMeta):
        return kind[text]
    if kind is bool:
        return {"true": True, "false": False}[text]
    pattern = _NUMBER if kind in (int, float) else _TEXT
    if not pattern.fullmatch(text):
        raise ValueError(text)
    return kind(text)


def _hosts(text: str) -> list[str]:
    """The names in [a.org,b.org]; ValueError where it is no plain list of them."""
    names = text.removeprefix("[").removesuffix("]").split(",") if text != "[]" else []
    if f"[{','.join(names)}]" != text or not all(map(_HOST.fullmatch, names)):
        raise ValueError(text)
    return names


def _configure(given: dict[str, Any]) -> ServeConfig:
    # The base loader leaves every value the text that it is (a list is empty here): a file and a command line are read
    # alike.
    defaults: dict[str, Any] = yaml.load(CONF.read_text(encoding="utf-8"), yaml.BaseLoader)
    values = {name: value_of(KEY + name, str(text)) for name, text in defaults.items() if name not in given}
    return ServeConfig(**values, **given)


def _accepted(places: Sequence[str], flags: Sequence[str]) -> str:
    return ", ".join([*(f"{place}=PATH" for place in places), *flags, "serve.KEY=VALUE"])
