"""The space of a search: what the command line and conf/search say, checked against the schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from graft.command import SearchLine, Spread, prepare, read_spread, take_sweeps
from graft.config import Config, to_yaml
from graft.errors import ConfigError
from graft.search.space import Params, Space, describe, ends, overrides, read_space, warnings
from tests.composing import CONF, composed

PHOTOS = "data=demo"


def space_of(*argv: str) -> tuple[Space, Config, SearchLine]:
    line = take_sweeps([PHOTOS, *argv])
    config = composed(*line.argv)
    return read_space(config, line), config, line


# --- distributions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "spread"),
    [
        ("optim.lr", "interval(1e-4, 0.1)", Spread((), 1e-4, 0.1)),
        ("optim.lr", "tag(log, interval(1e-4, 1e-1))", Spread((), 1e-4, 0.1, log=True)),
        ("optim.lr", "0.1,0.01", Spread((0.1, 0.01))),
        ("optim.lr", "choice(1, 0.5)", Spread((1.0, 0.5))),
        ("data.batch_size", "choice(32, 64, 64)", Spread((32, 64))),
        ("trainer.max_epochs", "range(2, 5)", Spread((2, 3, 4))),  # as in Python, and not as in Hydra's Optuna sweeper
        ("trainer.max_epochs", "range(1, 8, step=3)", Spread((1, 4, 7))),
        ("trainer.max_epochs", "interval(2, 5)", Spread((), 2, 5, whole=True)),
        ("trainer.max_epochs", "int(interval(2, 5))", Spread((), 2, 5, whole=True)),
        ("trainer.patience", "interval(2, 5)", Spread((), 2, 5, whole=True)),
        ("model.hidden", "tag(log, interval(16, 1024))", Spread((), 16, 1024, whole=True, log=True)),
        ("model.hidden", "tag(log, range(16, 1025))", Spread((), 16, 1024, whole=True, log=True)),
        ("model.backbone", "choice('resnet18', mobilenet_v2)", Spread(("resnet18", "mobilenet_v2"))),
        ("data.augment", "true,false", Spread((True, False))),
    ],
)
def test_hydras_sweeps_are_read(key: str, text: str, spread: Spread) -> None:
    assert read_spread(key, text) == spread


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("optim.l", "choice(1, 2)", "optim.l is not a key of the configuration; the nearest: optim.lr"),
        ("optim.lr", "0.1", "optim.lr=0.1: accepted is choice(A, B, ..), interval(LOW, HIGH)"),
        ("optim.lr", "interval(0.1, 0.001)", "with HIGH above LOW"),
        ("optim.lr", "interval(0, 1)", "optim.lr=0.0: accepted is a number above 0"),
        ("optim.weight_decay", "tag(log, interval(0, 1))", "accepted is choice"),
        ("optim.lr", "choice(1, fast)", "optim.lr=fast: accepted is a number above 0"),
        ("optim.lr", "tag(log, choice(1, 2))", "accepted is choice"),
        ("optim.lr", "glob(*)", "accepted is choice"),
        ("optim.lr", "interval(", "accepted is choice"),
        ("data.batch_size", "interval(0, 64)", "data.batch_size=0: accepted is an integer of at least 1"),
        ("data.batch_size", "interval(1.5, 64)", "accepted is choice"),
        ("data.batch_size", "choice(1.5)", "data.batch_size=1.5: accepted is an integer of at least 1"),
        ("data.balance", "choice(none, lots)", "data.balance=lots: accepted is none, sampler or loss"),
    ],
)
def test_what_a_key_does_not_accept_is_refused(key: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_spread(key, text)
    assert message in str(refused.value)


# --- the command line ------------------------------------------------------------------------------------------------


def test_sweeps_are_taken_out_of_the_command_line() -> None:
    line = take_sweeps(["data=demo", "optim.lr=interval(0.1, 1)", "seed=3", "model.hidden=8,16", "--help"])
    assert line.argv == ["data=demo", "seed=3", "--help"]
    assert line.space == {"optim.lr": "interval(0.1, 1)", "model.hidden": "8,16"}
    assert line.fixed == {"data", "seed"}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optim.l=1,2", "the nearest: optim.lr"),
        ("optim=adam,adamw", "optim is a group of options; a search tries values of keys, as optim.KEY=.."),
        ("experiment=a,b", "experiment is a group of options"),
        ("-m", "a search sweeps without -m"),
    ],
)
def test_a_sweep_of_what_cannot_be_searched_is_refused(argument: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        take_sweeps([argument])
    assert message in str(refused.value)


def test_the_command_line_adds_to_the_space_and_fixes_keys() -> None:
    space, config, line = space_of("model.hidden=8,16", "data.batch_size=64", "optim.lr=choice(0.1, 0.2)")
    assert list(space.spreads) == ["optim.lr", "optim.weight_decay", "model.hidden"]
    assert space.spreads["optim.lr"].values == (0.1, 0.2)
    assert space.default == {"optim.lr": 0.001, "optim.weight_decay": 0.0, "model.hidden": 512}
    assert config.data.batch_size == 64
    assert describe(config, line) == [
        "optim.lr=choice(0.1, 0.2)",
        "optim.weight_decay=tag(log, interval(1e-6, 1e-2))",
        "model.hidden=8,16",
    ]


def test_only_the_keys_of_the_command_line_are_searched_with_search_given() -> None:
    assert list(space_of("search=given", "model.hidden=8,16")[0].spreads) == ["model.hidden"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["search=given"], "search.space is empty"),
        (["run_dir=a,b"], "run_dir cannot be searched"),
        (["data.root=a,b"], "data.root cannot be searched"),
        (["data.on_corrupt=choice(repair, skip)"], "data.on_corrupt cannot be searched: it says what the trials are"),
        (["search.trials=1,2"], "search.trials cannot be searched"),
        (["evaluate.test=true,false"], "evaluate.test cannot be searched"),
        (["model.mean=choice([0,0,0],[1,1,1])"], "model.mean cannot be searched: its value is a list"),
        (["search.space=['optim.lrr=choice(1, 2)']"], "optim.lrr is not a key of the configuration"),
        (["search.space=['optim.lr=choice(1, -2)']"], "optim.lr=-2.0: accepted is a number above 0"),
        (["search.space=[optim.lr]"], "optim.lr=: accepted is choice(A, B, ..)"),
        (["search.sampler=grid"], "search.sampler=grid cannot count the values of optim.lr=interval(0.0001, 0.1)"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        space_of(*argv)
    assert message in str(refused.value)


def test_an_objective_on_test_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"search\.objective=test/loss: objectives are on valid, for a test split"):
        composed(PHOTOS, "search.objective=test/loss")
    with pytest.raises(ConfigError, match=r"search\.objective=loss: accepted is valid/loss, "):
        composed(PHOTOS, "search.objective=loss")


def test_the_space_of_the_original() -> None:
    space, config, _ = space_of("search=original")
    assert config.search.trials == 8
    assert space.spreads == {
        "optim.lr": Spread((), 0.001, 0.1),
        "data.batch_size": Spread((32, 64, 128, 256)),
        "trainer.max_epochs": Spread((), 2, 5, whole=True),
    }


@pytest.mark.parametrize("path", sorted((CONF / "search").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_space_of_conf_is_one(path: Path) -> None:
    space = space_of(f"search={path.stem}", "model.hidden=8,16")[0]
    assert (len(space.spreads) == 1) is (path.stem == "given")


def test_a_space_survives_a_run_of_its_own_config(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(composed(PHOTOS, "search=original")))
    argv = prepare([f"overrides_from={path}"], now="now", conf=CONF).argv
    assert composed(*argv[:-1]).search == composed(PHOTOS, "search=original").search


# --- what is made of it ----------------------------------------------------------------------------------------------


def test_a_grid_has_every_combination_but_the_default() -> None:
    space, *_ = space_of("search=given", "optim.lr=0.1,0.001", "data.batch_size=128,64")
    assert space.grid() == [
        {"optim.lr": 0.1, "data.batch_size": 128},
        {"optim.lr": 0.1, "data.batch_size": 64},
        {"optim.lr": 0.001, "data.batch_size": 64},
    ]


def test_a_grid_larger_than_the_budget_is_refused() -> None:
    argv = ["search=given", "search.sampler=grid", "optim.lr=0.1,0.2", "data.batch_size=range(1, 11)"]
    with pytest.raises(ConfigError, match=r"search\.trials=20: the grid has 21 trials.*accepted is search\.trials=21"):
        space_of(*argv)
    assert len(space_of(*argv, "search.trials=21")[0].grid()) == 20


def test_the_default_may_lie_outside_of_the_space() -> None:
    space, *_ = space_of()
    assert {key: space.has_default(key) for key in space.spreads} == {
        "optim.lr": True,
        "data.batch_size": True,
        "optim.weight_decay": False,
    }


def test_epochs_and_seed_are_warned_of_in_a_sentence_each() -> None:
    assert warnings(space_of()[0]) == []
    (epochs,) = warnings(space_of("search=original")[0])
    assert "fix trainer.max_epochs as a budget" in epochs
    both = warnings(space_of("search=original", "seed=range(0, 9)")[0])
    assert len(both) == 2
    assert "luck" in both[1]


def test_the_ends_of_a_key() -> None:
    space, config, _ = space_of("search=original")
    assert sorted(set(ends(space, config, "data.batch_size"))) == [32, 64, 128, 256]
    # trial 0 is one of the trials
    assert ends(space, config, "trainer.max_epochs") == [8, 2, 5]
    assert ends(space, config, "trainer.max_steps") == [-1]


def test_parameters_become_overrides_that_mean_the_same() -> None:
    params: Params = {
        "optim.lr": 1.0e-05,
        "data.augment": False,
        "data.balance": "loss",
        "model.weights": "a 'b', \\c.pth",
    }
    config = composed(PHOTOS, *overrides(params), *overrides({"trainer.patience": None}))
    assert (config.optim.lr, config.data.augment, config.data.balance.name) == (1e-05, False, "loss")
    assert (config.model.weights, config.trainer.patience) == ("a 'b', \\c.pth", None)
