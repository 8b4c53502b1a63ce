"""The command line of an entry script: checked before Hydra sees it, and explained by `--help`.

Nothing here composes a configuration, so a misspelt key or a wrong value is answered at once.
"""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
    ValueType,
)
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from graft.config import GROUPS, Config, check_value, knobs, unknown_key, wrong_value
from graft.errors import ConfigError
from graft.storage import is_remote

# The first of the defaults list in conf/config.yaml.
ConfigStore.instance().store(name="schema", node=Config)

# Flags that print something and run nothing; the first three know nothing of graft's configuration.
_FLAGS_OF_HYDRA = {"--hydra-help", "--shell-completion", "-sc"}
_FLAGS_THAT_SHOW = _FLAGS_OF_HYDRA | {"--help", "-h", "--cfg", "-c", "--info", "-i", "--version"}


class Command(NamedTuple):
    """A checked command line: the arguments for Hydra, and what they say of the runs to come."""

    argv: list[str]
    run_dir: str
    multirun: bool


class Given(NamedTuple):
    """One override: the key or group it names, its values (several where it sweeps), and its text."""

    key: str
    values: list[Any]
    text: str


class SearchLine(NamedTuple):
    """The command line of a search: what is left for `prepare`, and what it says of the space.

    Attributes:
        argv: without the sweeps.
        space: key -> what is tried, in the order given.
        fixed: keys that are given one value, and so are not searched.
    """

    argv: list[str]
    space: dict[str, str]
    fixed: frozenset[str]


class Spread(NamedTuple):
    """Values to try, as Hydra's grammar tells them: a list of them, or an interval.

    Attributes:
        values: of choice(..) and of range(..) without a logarithm; empty for an interval.
        low: of an interval.
        high: of an interval, included.
        whole: only integers.
        log: even in the logarithm.
    """

    values: tuple[Any, ...]
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False


def take_sweeps(argv: list[str]) -> SearchLine:
    """Take what Hydra would sweep out of a command line.

    Raises:
        ConfigError: --multirun is given, or an unknown key, or a group of options.
    """
    if {"-m", "--multirun"} & set(argv):
        raise ConfigError("a search sweeps without -m: give the keys, as in 'optim.lr=interval(1e-4, 1e-1)'")
    rest, space, fixed = [], {}, set()
    for argument in argv:
        override = _parsed(argument) if _is_override(argument) else None
        if override is None or not override.is_sweep_override():
            rest.append(argument)
            fixed |= {override.key_or_group} if override else set()
            continue
        key = override.key_or_group
        if key in GROUPS or key == "experiment":
            raise ConfigError(
                f"{argument}: {key} is a group of options; a search tries values of keys, as {key}.KEY=.."
            )
        if key not in knobs():
            raise unknown_key(key)
        space[key] = argument.partition("=")[2]
    return SearchLine(rest, space, frozenset(fixed - set(space)))


def read_spread(key: str, text: str) -> Spread:
    """What `text` says is tried of `key`: choice(..), a list of values, interval(..), range(..), with tag(log, ..).

    Raises:
        ConfigError: it is none of these, or a value that the key does not accept.
    """
    if key not in knobs():
        raise unknown_key(key)
    override = _parsed(f"{key}={text}")
    sweep = override.value() if override and override.is_sweep_override() else None
    spread = _spread(key, sweep) if isinstance(sweep, ChoiceSweep | RangeSweep | IntervalSweep) else None
    if override is None or spread is None or not (spread.values or spread.low < spread.high):
        raise ConfigError(
            f"{key}={text}: accepted is choice(A, B, ..), interval(LOW, HIGH), range(FROM, TO_WITHOUT, STEP), "
            "or tag(log, ..) of the last two, with HIGH above LOW"
        )
    ends = spread.values or ((int(spread.low), int(spread.high)) if spread.whole else (spread.low, spread.high))
    typed = [checked(key, value) for value in ends]
    return spread._replace(values=tuple(typed)) if spread.values else spread


def _spread(key: str, sweep: ChoiceSweep | RangeSweep | IntervalSweep) -> Spread | None:
    log, of_integers = "log" in sweep.tags, int in (knobs()[key].hint, *get_args(knobs()[key].hint))
    if isinstance(sweep, IntervalSweep):
        low, high = float(sweep.start or 0), float(sweep.end or 0)
        whole = of_integers or isinstance(sweep.start, int)
        if whole and not (low.is_integer() and high.is_integer()):
            return None
    elif isinstance(sweep, RangeSweep) and log:
        low, high, whole = float(sweep.start or 0), float(sweep.stop or 0) - 1, True
        if sweep.step != 1 or not (low.is_integer() and high.is_integer()):
            return None
    else:
        values = sweep.range() if isinstance(sweep, RangeSweep) else sweep.list
        plain = [item.text if isinstance(item, QuotedString) else item for item in values]
        return None if log else Spread(tuple(dict.fromkeys(plain)))
    return None if log and low <= 0 else Spread((), low, high, whole, log)


def prepare(argv: list[str], now: str, conf: Path) -> Command:
    """The arguments for Hydra: files of overrides expanded, keys and values checked, a run directory given.

    Args:
        argv: command-line arguments without the program's name.
        now: name of the run directory below runs/ where none is given.
        conf: directory of the configuration groups.

    Raises:
        ConfigError: a key is unknown (the message names the nearest), a value has the wrong type or
            range, or `overrides_from` is unreadable.
    """
    overrides = [argument for argument in argv if _is_override(argument)]
    flags = [argument for argument in argv if not _is_override(argument)]
    shown = {flag.partition("=")[0] for flag in flags} & _FLAGS_THAT_SHOW
    if shown & _FLAGS_OF_HYDRA:
        return Command(argv, "", multirun=False)
    given = list(_understood(overrides))
    for override in given:
        _check(override)
    source = _single("overrides_from", given)
    added = _read_overrides(Path(source), _settled_by(given, conf)) if source else []
    run_dir = _single("run_dir", given)
    if run_dir is None:
        run_dir = f"runs/{now}"
        added = [*added, f"run_dir={run_dir}"]
    multirun = bool({"-m", "--multirun"} & set(flags)) and not shown
    if multirun and is_remote(run_dir):
        raise ConfigError(f"run_dir={run_dir}: accepted under -m is a local path")
    # argparse takes overrides in one piece only, and `--info` would swallow one that follows it.
    return Command([*added, *overrides, *flags], run_dir, multirun)


def overrides_given() -> tuple[str, ...]:
    """What the command line said, as Hydra recorded it; nothing outside of an entry script."""
    return tuple(HydraConfig.get().overrides.task) if HydraConfig.initialized() else ()


def sweep_size() -> int | None:
    """How many runs the command line of this process sweeps over; None where only Hydra can tell, as for glob(*)."""
    overrides = [argument for argument in sys.argv[1:] if _is_override(argument)]
    counts = {override.key: len(override.values) for override in _understood(overrides)}  # the last of a key wins
    return math.prod(counts.values()) or None


def hydra_launcher() -> str:
    """What runs the members of a sweep (`hydra/launcher`): basic runs them one by one in this process."""
    return str(HydraConfig.get().runtime.choices["hydra/launcher"]) if HydraConfig.initialized() else "basic"


def same_command(config: Config) -> list[str]:
    """Script and arguments with which another process composes this very run, also where it is one of a sweep."""
    test = {None: "null", True: "true", False: "false"}[config.evaluate.test]
    run_dir = config.run_dir.replace("'", r"\'")
    return [sys.argv[0], *overrides_given(), f"run_dir='{run_dir}'", f"evaluate.test={test}"]


def key_help() -> str:
    """Every key with its meaning and the values it accepts, for `--help`."""
    lines, section = [], ""
    for key, knob in knobs().items():
        group = key.rpartition(".")[0]
        if group != section:
            section = group
            lines += ["", f"{group}: {(GROUPS[group].__doc__ or '').splitlines()[0]}"]
        text = f"  {key:<27} {knob.doc} ({knob.accepted})"
        lines += textwrap.wrap(text, width=110, subsequent_indent=" " * 30, break_on_hyphens=False)
    return "\n".join(lines)


# conf/config.yaml puts it into Hydra's template as ${key_help:}.
OmegaConf.register_new_resolver("key_help", key_help, replace=True)


def _is_override(argument: str) -> bool:
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def _understood(overrides: list[str]) -> Iterator[Given]:
    """The overrides in Hydra's grammar; what it refuses is left to Hydra."""
    for text in overrides:
        override = _parsed(text)
        if override is not None:
            yield Given(override.key_or_group, _values(override), text)


def _parsed(text: str) -> Override | None:
    """An override in Hydra's grammar; None where Hydra refuses it."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def _values(override: Override) -> list[Any]:
    """The values that an override names; none where only Hydra can tell, as for glob(*)."""
    if not override.is_sweep_override():
        return [override.value()]
    if not override.is_discrete_sweep() or override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        return []
    return [item.text if isinstance(item, QuotedString) else item for item in override.sweep_iterator()]


def _single(key: str, given: list[Given]) -> str | None:
    """The one value of a key that cannot be swept; None where it is not given."""
    named = [override for override in given if override.key == key]
    if not named or named[-1].values == [None]:
        return None
    if len(named[-1].values) != 1:
        raise ConfigError(f"{named[-1].text}: {key} takes one value, also under -m")
    return str(named[-1].values[0])


def _check(override: Given) -> None:
    """Refuse a key that does not exist, and a value of the wrong type or range."""
    key = override.key
    if key in GROUPS or key == "experiment" or key.startswith(("hydra.", "hydra/")):
        return
    if key not in knobs():
        raise unknown_key(key)
    for value in override.values:
        # What it stands for is known, and checked, when all is composed.
        if not (isinstance(value, str) and "${" in value):
            checked(key, value)


def value_of(key: str, text: str) -> Any:
    """What `text`, in Hydra's grammar, gives a key: one value of its type.

    Raises:
        ConfigError: the key is unknown, or does not accept it.
    """
    if key not in knobs():
        raise unknown_key(key)
    override = _parsed(f"{key}={text}")
    if override is None or override.is_sweep_override():
        raise wrong_value(key, text)
    return checked(key, override.value())


def checked(key: str, value: Any) -> Any:
    """A value as the schema's type of its key, refused where the key does not accept it."""
    typed = _typed(key, value)
    check_value(key, typed)
    return typed


def _typed(key: str, value: Any) -> Any:
    """A value as the schema's type of its key."""
    group, _, name = key.rpartition(".")
    section = _section(group)
    try:
        section[name] = value
        typed = OmegaConf.select(section, name)
    except OmegaConfBaseException as error:
        raise wrong_value(key, value) from error
    return OmegaConf.to_object(typed) if OmegaConf.is_config(typed) else typed


@cache
def _section(group: str) -> DictConfig:
    """A group of the schema, one for all checks, for that takes milliseconds: each sets the field that it reads."""
    section = OmegaConf.structured(GROUPS.get(group, Config))
    assert isinstance(section, DictConfig)
    return section


def _read_overrides(path: Path, settled: set[str]) -> list[str]:
    """Overrides from a YAML list, or from the mapping of a run's config.yaml, but for the keys that are settled."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"overrides_from={path} cannot be read: {' '.join(reason.split())}") from error
    pairs = _flat(content) if isinstance(content, dict) else []
    lines = [f"{key}={quoted(value)}" for key, value in pairs] or [str(line) for line in content or ()]
    given = list(_understood(lines))
    refused = set(lines) - {override.text for override in given}
    if refused:
        raise ConfigError(f"overrides_from={path}: {min(refused)} is no override; accepted is KEY=VALUE")
    try:
        for override in given:
            _check(override)
    except ConfigError as error:
        raise ConfigError(f"overrides_from={path}: {error}") from error
    settled = settled | {"run_dir", "overrides_from"}
    return [override.text for override in given if override.key not in settled]


def _settled_by(given: list[Given], conf: Path) -> set[str]:
    """The keys and groups that the command line names, and the keys that the options it chooses set."""
    settled = {override.key for override in given}
    for override in given:
        for option in override.values if (conf / override.key).is_dir() else []:
            settled |= _keys_of_option(conf, override.key, str(option))
    return settled


def _keys_of_option(conf: Path, group: str, option: str) -> set[str]:
    """The keys that conf/GROUP/OPTION.yaml sets, also through the options that it chooses in turn."""
    path = conf / group / f"{option}.yaml"
    if not path.exists():
        # Hydra will list those that do.
        return set()
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    chosen = content.pop("defaults", [])
    prefix = "" if "@package _global_" in path.read_text().partition("\n")[0] else f"{group}."
    keys = {key for key, _ in _flat(content, prefix)}
    for name, inner in (item for entry in chosen if isinstance(entry, dict) for item in entry.items()):
        keys |= _keys_of_option(conf, name.rpartition("/")[2], str(inner))
    return keys


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def quoted(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, list):
        return f"[{','.join(quoted(item) for item in value)}]"
    return "null" if value is None else str(value)
