"""The space of a search: which keys are tried, with which values. Pure; nothing here loads torch or Optuna."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from graft.command import SearchLine, Spread, quoted, read_spread
from graft.config import Config, Sampler, flatten, knobs, plain
from graft.errors import ConfigError

Value = str | int | float | bool | None
Params = dict[str, Value]

# They say what is compared, where it is written or how it is searched, so that their trials compare with no other;
# data.on_corrupt, for a photo of valid that it leaves out in one trial would judge another.
_NOT_SEARCHED = (
    *("run_dir", "overrides_from", "data.root", "data.kind", "data.hint", "data.demo_per_class"),
    "data.on_corrupt",
)
_GROUPS_NOT_SEARCHED = ("evaluate.", "launcher.", "search.")
_EPOCHS = ("trainer.max_epochs", "trainer.max_steps", "trainer.patience")


@dataclass(frozen=True)
class Space:
    """What a search tries.

    Attributes:
        spreads: key -> its values.
        default: the values of these keys in the composed configuration: trial 0.
    """

    spreads: dict[str, Spread]
    default: Params

    def has_default(self, key: str) -> bool:
        """Whether the space holds the value of trial 0, so that a sampler can learn from it."""
        spread, value = self.spreads[key], self.default[key]
        if spread.values:
            return value in spread.values
        return isinstance(value, int | float) and spread.low <= value <= spread.high

    def grid(self) -> list[Params]:
        """Every combination but that of trial 0, the last key moving fastest.

        Raises:
            ConfigError: a key has an interval of numbers that cannot be counted.
        """
        choices = [_counted(key, spread) for key, spread in self.spreads.items()]
        combinations = [dict(zip(self.spreads, values, strict=True)) for values in itertools.product(*choices)]
        return [params for params in combinations if params != self.default]


def read_space(config: Config, line: SearchLine) -> Space:
    """The space that the configuration and the command line name, checked against the schema.

    What the command line sweeps is added to `search.space`; what it gives one value is not searched.

    Raises:
        ConfigError: a key is unknown or cannot be searched, or a value is not accepted; nothing is left to search;
            a grid has an interval, or more combinations than `search.trials`.
    """
    texts = _texts(config, line)
    if not texts:
        raise ConfigError("search.space is empty: give a key what to try, as in 'optim.lr=interval(1e-4, 1e-1)'")
    for key in texts:
        _refuse_unsearchable(key)
    spreads = {key: read_spread(key, text) for key, text in texts.items()}
    values = flatten(config)
    space = Space({key: _plain(spread) for key, spread in spreads.items()}, {key: values[key] for key in spreads})
    if config.search.sampler is Sampler.grid:
        wanted = trial_count(config, space)
        if wanted > config.search.trials:
            raise ConfigError(
                f"search.trials={config.search.trials}: the grid has {wanted} trials, the default configuration "
                f"included; accepted is search.trials={wanted} or more"
            )
    return space


def trial_count(config: Config, space: Space) -> int:
    """How many trials a search has: those of a whole grid, or `search.trials`."""
    return 1 + len(space.grid()) if config.search.sampler is Sampler.grid else config.search.trials


def describe(config: Config, line: SearchLine) -> list[str]:
    """`search.space` with what the command line says of it, for the record."""
    return [f"{key}={text}" for key, text in _texts(config, line).items()]


def warnings(space: Space) -> list[str]:
    """One sentence for each kind of key that makes the trials hard to compare."""
    found = []
    if any(key in space.spreads for key in _EPOCHS):
        found.append(
            "epochs are searched: the trial that trains longest tends to win, whatever its other keys say; "
            "better fix trainer.max_epochs as a budget (trainer.patience ends a run, search.pruner=halving a trial)"
        )
    if "seed" in space.spreads:
        found.append(
            "the seed is searched: the best seed is luck that another set of photos does not repeat; "
            "better fix it and read the interval over seeds (search.repeats)"
        )
    return found


def ends(space: Space, config: Config, key: str) -> list[int]:
    """Values of a key of integers, among them the smallest and the largest that it takes in a search."""
    values: list[Value] = [flatten(config)[key]]
    if key in space.spreads:
        spread = space.spreads[key]
        values += spread.values or (spread.low, spread.high)
    return [int(value) for value in values if isinstance(value, int | float)]


def overrides(params: Mapping[str, Value]) -> list[str]:
    """The parameters as lines that `overrides_from` reads."""
    return [f"{key}={quoted(value)}" for key, value in params.items()]


def _texts(config: Config, line: SearchLine) -> dict[str, str]:
    """Key -> what is tried, as text."""
    entries = (entry.partition("=") for entry in config.search.space)
    return {key.strip(): text.strip() for key, _, text in entries if key.strip() not in line.fixed} | line.space


def _refuse_unsearchable(key: str) -> None:
    if key in _NOT_SEARCHED or key.startswith(_GROUPS_NOT_SEARCHED):
        raise ConfigError(
            f"{key} cannot be searched: it says what the trials are compared on, or where they are written"
        )
    if key in knobs() and "list" in str(knobs()[key].hint):
        raise ConfigError(f"{key} cannot be searched: its value is a list")


def _plain(spread: Spread) -> Spread:
    """Enums by name, as `flatten` has them and as files and Optuna keep them."""
    return spread._replace(values=tuple(map(plain, spread.values)))


def _counted(key: str, spread: Spread) -> list[Value]:
    if spread.values:
        return list(spread.values)
    if spread.whole and not spread.log:
        return list(range(int(spread.low), int(spread.high) + 1))
    raise ConfigError(
        f"search.sampler=grid cannot count the values of {key}=interval({spread.low:g}, {spread.high:g}); "
        "accepted is choice(..) or range(..)"
    )
