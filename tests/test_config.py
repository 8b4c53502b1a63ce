"""Types, ranges and words of every knob; a configuration comes back from its YAML."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from graft.config import (
    Config,
    DataConfig,
    FeaturesConfig,
    ModelConfig,
    OptimConfig,
    config_hash,
    flatten,
    knobs,
    parse,
    sweep_member,
    to_yaml,
)
from graft.errors import ConfigError
from tests.composing import compose_tree, composed


def config(**groups: Any) -> Config:
    return Config(run_dir="run", **{"data": DataConfig(root="photos"), **groups})


def refusal(**groups: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**groups)
    return str(caught.value)


def parse_refusal(tree: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(OmegaConf.create({"run_dir": "run", **tree}))
    return str(caught.value)


# --- ranges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"optim": OptimConfig(lr=0.0)}, "optim.lr=0.0: accepted is a number above 0"),
        ({"optim": OptimConfig(lr=math.nan)}, "optim.lr=nan: accepted is a number above 0"),
        ({"optim": OptimConfig(lr=math.inf)}, "optim.lr=inf: accepted is a number above 0"),
        (
            {"optim": OptimConfig(label_smoothing=1.0)},
            "optim.label_smoothing=1.0: accepted is a number of at least 0 and below 1",
        ),
        ({"seed": -1}, "seed=-1: accepted is an integer of at least 0 and at most 4294967295"),
        ({"seed": 2**32}, "seed=4294967296: accepted is an integer of at least 0 and at most 4294967295"),
        (
            {"model": ModelConfig(image_size=31)},
            "model.image_size=31: accepted is an integer of at least 32 or null",
        ),
        (
            {"model": ModelConfig(mean=[0.5])},
            "model.mean=[0.5]: accepted is a list of 3 numbers or null",
        ),
        (
            {"model": ModelConfig(mean=[0.5, math.nan, 0.5])},
            "model.mean=[0.5, nan, 0.5]: accepted is a list of 3 numbers or null",
        ),
        (
            {"model": ModelConfig(std=[0.5, 0.0, 0.5])},
            "model.std=[0.5, 0.0, 0.5]: accepted is a list of 3 numbers above 0 or null",
        ),
        (
            {"features": FeaturesConfig(plain=False)},
            "features.plain=false needs features.views of at least 1: nothing is left to train on",
        ),
    ],
)
def test_a_value_out_of_range_is_refused(groups: dict[str, Any], message: str) -> None:
    assert refusal(**groups) == message


@pytest.mark.parametrize(
    "groups",
    [
        {"seed": 0},
        {"seed": 2**32 - 1},
        {"optim": OptimConfig(lr=1e-30, label_smoothing=0.0, weight_decay=0.0)},
        {"optim": OptimConfig(label_smoothing=0.999)},
        {"model": ModelConfig(image_size=32, mean=[-1.0, 0.0, 1.0], std=[1e-9, 1.0, 9.0])},
        {"features": FeaturesConfig(plain=False, views=1)},
        {"data": DataConfig(root="photos", workers=0, batch_size=1)},
    ],
)
def test_a_value_at_the_edge_of_its_range_is_accepted(groups: dict[str, Any]) -> None:
    config(**groups)


@pytest.mark.parametrize("key", [key for key, knob in knobs().items() if knob.bounds])
def test_every_bound_is_kept(key: str) -> None:
    knob = knobs()[key]
    step = 1 if "integer" in knob.accepted else 1e-6
    for words, bound in knob.bounds.items():
        outward = -step if words in ("at least", "above") else step
        bad = bound if words in ("above", "below") else bound + outward
        value = [bad, 1.0, 1.0] if knob.length else bad
        assert not knob.allows(value)
        assert knob.allows([bad - outward, 1.0, 1.0] if knob.length else bad - outward)


@pytest.mark.parametrize(
    ("key", "accepted"),
    [
        ("run_dir", "text"),
        ("overrides_from", "text or null"),
        ("data.augment", "true or false"),
        ("evaluate.test", "true, false or null"),
        ("data.on_corrupt", "repair, skip or error"),
        ("trainer.patience", "an integer of at least 1 or null"),
        ("features.max_gb", "a number above 0"),
    ],
)
def test_what_is_accepted_is_said_in_words(key: str, accepted: str) -> None:
    assert knobs()[key].accepted == accepted


# --- parse -----------------------------------------------------------------------------------------------------------


def test_parse_gives_typed_values_and_defaults() -> None:
    parsed = parse(OmegaConf.create({"run_dir": "run", "data": {"root": "photos", "balance": "loss"}, "seed": 7}))
    assert parsed.data.balance.name == "loss"
    assert (parsed.seed, parsed.optim.lr, parsed.trainer.patience) == (7, 1e-3, 5)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"data": {"batchsize": 3}},
            "data.batchsize is not a key of the configuration; "
            "the nearest: data.batch_size, data.archive, features.batch_size",
        ),
        ({"epochs": 3}, "epochs is not a key of the configuration; the nearest: trainer.max_epochs"),
        ({"data": {"root": "x"}, "optim": {"lr": "fast"}}, "optim.lr: Value 'fast' of type 'str' could not be"),
        ({"data": {"root": "x", "balance": "both"}}, "expected one of [none, sampler, loss]"),
        ({"data": {"root": "${where}"}}, "data.root: Interpolation key 'where' not found"),
        (
            {},
            "data.root is not set: folder or s3://BUCKET/PREFIX with train/, valid/ (or val/) and test/; "
            "give data.root=VALUE",
        ),
        ({"data": {"root": "x"}, "optim": {"lr": -1}}, "optim.lr=-1.0: accepted is a number above 0"),
    ],
)
def test_parse_refuses(tree: dict[str, Any], message: str) -> None:
    assert message in parse_refusal(tree)
    assert "\n" not in parse_refusal(tree)


def test_a_key_that_hydra_let_pass_is_refused() -> None:
    # Hydra adds what a plus adds; without the second merge it would vanish silently.
    tree = compose_tree("data.root=photos")
    OmegaConf.set_struct(tree, False)
    tree["extra"] = 3
    with pytest.raises(ConfigError, match="extra is not a key"):
        parse(tree)


def test_interpolations_are_resolved_and_their_values_checked() -> None:
    assert composed("data.root=photos", "trainer.max_epochs=${data.batch_size}").trainer.max_epochs == 128
    with pytest.raises(ConfigError, match=r"optim\.lr=0\.0: accepted is a number above 0"):
        composed("data.root=photos", "optim.lr=${optim.weight_decay}")


def test_the_file_of_overrides_is_no_part_of_a_run(tmp_path: Path) -> None:
    # A run and the run of its config.yaml are the same, so that the one resumes the other.
    path = tmp_path / "config.yaml"
    first = composed("data.root=photos", "run_dir=run")
    path.write_text(to_yaml(first))
    again = composed(f"overrides_from={path}", "run_dir=run")
    assert to_yaml(again) == to_yaml(first)


# --- under -m --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hydra_config() -> Iterator[HydraConfig]:
    yield HydraConfig.instance()
    HydraConfig.instance().cfg = None


def parse_member(hydra_config: HydraConfig, number: int, *overrides: str, mode: str = "MULTIRUN") -> Config:
    tree = compose_tree(
        "data.root=photos",
        "run_dir=sweep",
        f"hydra.mode={mode}",
        f"hydra.job.num={number}",
        *overrides,
        return_hydra_config=True,
    )
    hydra_config.set_config(tree)
    return parse(OmegaConf.masked_copy(tree, [str(key) for key in tree if key != "hydra"]))


@pytest.mark.parametrize("number", [0, 3])
def test_each_run_of_a_sweep_has_its_directory(hydra_config: HydraConfig, number: int) -> None:
    assert parse_member(hydra_config, number).run_dir == f"sweep/{number}"
    assert sweep_member() == Path("sweep") / str(number)


@pytest.mark.parametrize(
    ("override", "opened"),
    [("evaluate.test=null", False), ("evaluate.test=false", False), ("evaluate.test=true", True)],
)
def test_a_sweep_leaves_test_sealed_unless_asked(hydra_config: HydraConfig, override: str, opened: bool) -> None:
    assert parse_member(hydra_config, 0, override).evaluate.test is opened


def test_a_run_of_its_own_keeps_its_directory_and_opens_test(hydra_config: HydraConfig) -> None:
    alone = parse_member(hydra_config, 0, mode="RUN")
    assert (alone.run_dir, alone.evaluate.test) == ("sweep", None)
    assert sweep_member() is None


# --- records ---------------------------------------------------------------------------------------------------------


def test_flatten_gives_plain_values_in_schema_order() -> None:
    flat = flatten(config())
    assert list(flat) == list(knobs())
    assert (flat["data.kind"], flat["optim.lr"], flat["model.mean"]) == ("folder", 1e-3, None)
    assert not any(isinstance(value, Enum) for value in flat.values())


def test_the_hash_is_that_of_everything_but_the_run_directory() -> None:
    first = config(features=FeaturesConfig(views=1))
    assert config_hash(dataclasses.replace(first, run_dir="elsewhere")) == config_hash(first)
    for key in [key for key in knobs() if key not in ("run_dir", "overrides_from")]:
        changed = copy.deepcopy(first)
        group, _, name = key.rpartition(".")
        setattr(getattr(changed, group) if group else changed, name, other_value(key, random.Random(0)))
        assert config_hash(changed) != config_hash(first), key


@pytest.mark.parametrize(
    ("enabled", "unfreeze", "cached"),
    [(True, "head", True), (False, "head", False), (True, "layer4", False), (True, "all", False)],
)
def test_features_are_for_a_frozen_backbone(enabled: bool, unfreeze: str, cached: bool) -> None:
    run = config(features=FeaturesConfig(enabled=enabled), model=ModelConfig(unfreeze=unfreeze))
    assert run.trains_on_features is cached


NASTY = [*"'\"\\ ,=[]{}():#~+@é\ta", "\\'", "null"]


def other_value(key: str, rng: random.Random) -> Any:
    """A value of the right type and range that is not the default."""
    default, knob = flatten(config())[key], knobs()[key]
    words = knob.accepted
    if words.startswith("true"):
        return not default
    if words.startswith("an integer"):
        return (default or 32) + rng.randint(1, 9)
    if words.startswith("a number"):
        return 0.5 + rng.random() / 3
    if words.startswith("a list"):
        return [rng.random() + 0.1 for _ in range(3)]
    if words.startswith("text"):
        return "".join(rng.choices(NASTY, k=rng.randint(1, 12)))
    return next(choice for choice in words.replace(" or ", ", ").split(", ") if choice != default)


def composed_from(base: Config, values: dict[str, Any]) -> Config:
    tree = OmegaConf.structured(base)
    for key, value in values.items():
        OmegaConf.update(tree, key, value)
    return parse(tree)


@pytest.mark.parametrize("seed", range(5))
def test_a_configuration_comes_back_from_its_yaml(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    keys = [key for key in knobs() if key not in ("run_dir", "overrides_from")]
    run = composed_from(config(), {key: other_value(key, rng) for key in keys})
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(run))
    again = composed(f"overrides_from={path}", "run_dir=run")
    assert flatten(again) == flatten(run)
    assert all(flatten(again)[key] != flatten(config())[key] for key in keys)
