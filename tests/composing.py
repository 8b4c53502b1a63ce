"""A command line turned into a configuration, in this process and without running anything."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from graft.command import prepare
from graft.config import Config, parse

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"


def composed(*argv: str) -> Config:
    """The configuration that `python train.py ARGV` would run with."""
    return parse(compose_tree(*argv))


def compose_tree(*argv: str, return_hydra_config: bool = False) -> DictConfig:
    """What Hydra composes from a checked command line."""
    prepared = prepare(list(argv), now="now", conf=CONF).argv
    overrides = [argument for argument in prepared if not argument.startswith("-")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides, return_hydra_config=return_hydra_config)
