"""The command line of an endpoint's commands: `serve.*`, endpoint=NAME, the account of `launcher.*`, `budget.usd`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from graft.command import value_of
from graft.config import Config, DataConfig, DataKind, changed
from graft.errors import ConfigError
from graft.launcher.account import found_region
from serve.arguments import Arguments, read_arguments

CONF = Path(__file__).resolve().parents[1] / "conf" / "launcher" / "sagemaker.yaml"
# Of launcher.*, what an endpoint has in common with a job.
LAUNCHER = {f"launcher.{name}" for name in ("role", "region", "bucket", "prefix", "tags")}
# An endpoint reads no photos and writes no run; the schema wants a place of both.
_NO_PHOTOS = DataConfig(kind=DataKind.demo, root=".")
KEYS = LAUNCHER | {"budget.usd", "features.cache_dir"}


@dataclass(frozen=True)
class EndpointArguments:
    """What a command was given.

    Attributes:
        endpoint: the name; empty where the command takes none.
        config: of the account, the budget and `serve.*`.
        other: photos, flags and places.
    """

    endpoint: str
    config: Config
    other: Arguments

    @property
    def region(self) -> str:
        """Where the endpoint is.

        Raises:
            ConfigError: nothing says it.
        """
        region = found_region(self.config)
        if region is None:
            raise ConfigError(
                "launcher.region is not set; `aws configure set region us-east-1`, or launcher.region=REGION"
            )
        return region


def read_endpoint_arguments(
    argv: Sequence[str],
    *,
    named: bool = True,
    places: Sequence[str] = (),
    flags: Sequence[str] = (),
    words: bool = False,
) -> EndpointArguments:
    """Read what stands behind the name of a command.

    The account is what conf/launcher/sagemaker.yaml says, then the run of `run_dir` where SageMaker trained it, then
    the command line.

    Args:
        argv: the arguments.
        named: whether an endpoint has to be named.
        places: keys of paths that it takes.
        flags: that it takes.
        words: whether it takes others.

    Raises:
        ConfigError: an argument is not accepted, or the endpoint is not named.
    """
    name, values, rest = "", {}, []
    for argument in argv:
        key, equals, text = argument.partition("=")
        if named and key == "endpoint" and equals:
            name = text
        elif equals and key in KEYS:
            values[key] = value_of(key, text)
        else:
            rest.append(argument)
    if named and not name:
        raise ConfigError("endpoint is not set; give endpoint=NAME")
    other = read_arguments(rest, places=places, flags=flags, words=words)
    kept = _account_in(CONF) | _account_of_run(other.places.get("run_dir"))
    config = changed(Config(run_dir=".", data=_NO_PHOTOS), kept | values)
    return EndpointArguments(name, replace(config, serve=other.config), other)


def _account_of_run(run_dir: Path | None) -> dict[str, Any]:
    """What the configuration of a run says of the account that it was trained in."""
    path = run_dir / "config.yaml" if run_dir else None
    if path is None or not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))["launcher"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no configuration of a run ({error}); give bundle=PATH of a model.tar.gz"
        ) from error
    return _known(content)


def _account_in(path: Path) -> dict[str, Any]:
    return _known(yaml.safe_load(path.read_text(encoding="utf-8")) or {})


def _known(content: dict[str, Any]) -> dict[str, Any]:
    """The keys that concern an endpoint, where they are set."""
    named = {f"launcher.{name}": value for name, value in content.items()}
    return {key: value for key, value in named.items() if key in LAUNCHER and value is not None}
