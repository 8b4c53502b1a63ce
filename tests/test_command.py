"""A command line is checked before Hydra sees it; files of overrides lose against it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graft.command import Command, key_help, overrides_given, prepare, sweep_size
from graft.config import GROUPS, DataConfig, FeaturesConfig, ModelConfig, OptimConfig, knobs, to_yaml
from graft.config import Config as RunConfig
from graft.errors import ConfigError
from tests.composing import CONF, composed


def prepared(*argv: str) -> Command:
    return prepare(list(argv), now="NOW", conf=CONF)


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        prepared(*argv)
    return str(caught.value)


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("optim.lrr=1", "optim.lrr", "optim.lr, optim.clip_norm, optim.algorithm"),
        ("+data.batchsize=3", "data.batchsize", "data.batch_size, data.archive, features.batch_size"),
        ("++data.batchsize=3", "data.batchsize", "data.batch_size, data.archive, features.batch_size"),
        ("batch_size=3", "batch_size", "data.batch_size, features.batch_size"),
        ("lr=3", "lr", "optim.lr"),
        ("optim.max_epochs=3", "optim.max_epochs", "trainer.max_epochs"),
        ("learning_rate=3", "learning_rate", "optim.lr, optim.backbone_lr_factor"),
        ("experimnt=original_best", "experimnt", "experiment"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(override: str, key: str, nearest: str) -> None:
    assert refusal(override) == f"{key} is not a key of the configuration; the nearest: {nearest}"


def test_a_key_like_no_other_is_refused() -> None:
    assert refusal("xyzzy=1") == "xyzzy is not a key of the configuration; `python train.py --help` lists them all"


@pytest.mark.parametrize(
    "override",
    [
        "data=demo",
        "experiment=original_best",
        "optim={lr:0.1}",
        "hydra/launcher=joblib",
        "hydra.sweep.subdir=x",
        "~experiment",
    ],
)
def test_groups_and_the_keys_of_hydra_are_known(override: str) -> None:
    assert override in prepared(override).argv


@pytest.mark.parametrize("override", ["optim.lr=[1", "optim.lr='1"])
def test_what_hydra_cannot_read_is_left_to_hydra(override: str) -> None:
    assert override in prepared(override).argv


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=fast", "optim.lr=fast: accepted is a number above 0"),
        ("optim.lr=", "optim.lr=: accepted is a number above 0"),
        ("optim.lr=null", "optim.lr=null: accepted is a number above 0"),
        ("optim.lr=0", "optim.lr=0.0: accepted is a number above 0"),
        ("optim.lr=nan", "optim.lr=nan: accepted is a number above 0"),
        ("optim.lr=inf", "optim.lr=inf: accepted is a number above 0"),
        ("data.batch_size=1.5", "data.batch_size=1.5: accepted is an integer of at least 1"),
        ("data.batch_size=0", "data.batch_size=0: accepted is an integer of at least 1"),
        ("data.workers=two", "data.workers=two: accepted is an integer of at least 0 or null"),
        ("data.augment=maybe", "data.augment=maybe: accepted is true or false"),
        ("evaluate.test=maybe", "evaluate.test=maybe: accepted is true, false or null"),
        ("data.balance=both", "data.balance=both: accepted is none, sampler or loss"),
        ("data.balance=null", "data.balance=null: accepted is none, sampler or loss"),
        ("data.root=null", "data.root=null: accepted is text"),
        ("model.mean=0.5", "model.mean=0.5: accepted is a list of 3 numbers or null"),
        ("model.mean=[a,b,c]", "model.mean=['a', 'b', 'c']: accepted is a list of 3 numbers or null"),
        ("model.std=[1,1]", "model.std=[1.0, 1.0]: accepted is a list of 3 numbers above 0 or null"),
    ],
)
def test_a_wrong_value_is_refused(override: str, message: str) -> None:
    assert refusal(override) == message


@pytest.mark.parametrize(
    "override",
    [
        "data.workers=null",
        "data.workers=0",
        "data.augment=False",
        "data.balance=loss",
        "optim.lr=1",
        "data.root=2024",
        "data.root=???",
        "model.mean=[0,0.5,1]",
        "optim.lr=${optim.weight_decay}",
        "seed='3'",
    ],
)
def test_a_right_value_is_accepted(override: str) -> None:
    assert override in prepared(override).argv


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=0.1,-1", "optim.lr=-1.0: accepted is a number above 0"),
        ("optim.lr=choice(0.1,fast)", "optim.lr=fast: accepted is a number above 0"),
        ("seed=range(-1,2)", "seed=-1: accepted is an integer of at least 0 and at most 4294967295"),
        ("data.balance=none,'all'", "data.balance=all: accepted is none, sampler or loss"),
    ],
)
def test_every_value_of_a_sweep_is_checked(override: str, message: str) -> None:
    assert refusal("-m", override) == message


@pytest.mark.parametrize("override", ["optim.lr=0.1,1", "seed=range(0,3)", "optim.lr=interval(0,1)", "data=glob(*)"])
def test_sweeps_of_right_values_are_accepted(override: str) -> None:
    assert override in prepared("-m", override).argv


# --- the run directory, flags and their order ------------------------------------------------------------------------


def test_a_run_directory_is_given_where_there_is_none() -> None:
    assert prepared("data=demo") == (["run_dir=runs/NOW", "data=demo"], "runs/NOW", False)
    assert prepared() == (["run_dir=runs/NOW"], "runs/NOW", False)


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("run_dir=there", "there"),
        ("run_dir='a b'", "a b"),
        (r"run_dir='it\'s, a=b'", "it's, a=b"),
        ('run_dir="x"', "x"),
        ("run_dir=7", "7"),
    ],
)
def test_a_run_directory_that_is_given_stays(override: str, path: str) -> None:
    assert prepared(override, "seed=1") == ([override, "seed=1"], path, False)


def test_the_last_run_directory_counts_as_in_hydra() -> None:
    assert prepared("run_dir=a", "run_dir=b").run_dir == "b"


@pytest.mark.parametrize("override", ["run_dir=a,b", "run_dir=glob(*)", "overrides_from=a.yaml,b.yaml"])
def test_a_run_directory_is_not_swept(override: str) -> None:
    key = override.partition("=")[0]
    assert refusal("-m", override) == f"{override}: {key} takes one value, also under -m"


@pytest.mark.parametrize(
    ("given", "argv"),
    [
        (["-m", "seed=1,2"], ["seed=1,2", "-m"]),
        (["seed=1,2", "--multirun"], ["seed=1,2", "--multirun"]),
        (["seed=1,2", "-m", "data=demo"], ["seed=1,2", "data=demo", "-m"]),
        (
            ["-m", "--config-dir", "more", "seed=1", "~experiment"],
            ["seed=1", "~experiment", "-m", "--config-dir", "more"],
        ),
        (["--cfg", "job", "seed=1", "--resolve"], ["seed=1", "--cfg", "job", "--resolve"]),
        (["--info"], ["--info"]),
    ],
)
def test_overrides_stand_before_flags(given: list[str], argv: list[str]) -> None:
    assert prepared(*given).argv == ["run_dir=runs/NOW", *argv]


@pytest.mark.parametrize(
    ("argv", "multirun"),
    [
        (["-m", "seed=1,2"], True),
        (["--multirun", "seed=1,2"], True),
        (["seed=1"], False),
        (["-m", "--help"], False),
        (["-m", "--cfg", "job"], False),
        (["-m", "--cfg=job"], False),
        (["-m", "--info", "config"], False),
    ],
)
def test_a_sweep_is_one_that_runs(argv: list[str], multirun: bool) -> None:
    assert prepared(*argv).multirun is multirun


@pytest.mark.parametrize("argv", [["--hydra-help"], ["--shell-completion", "install=bash"], ["-sc", "query=bash"]])
def test_what_is_for_hydra_alone_is_left_as_it_is(argv: list[str]) -> None:
    assert prepared(*argv) == (argv, "", False)


def test_no_overrides_are_recorded_outside_of_a_run() -> None:
    assert overrides_given() == ()


# --- overrides_from --------------------------------------------------------------------------------------------------


@pytest.fixture
def best(tmp_path: Path) -> Path:
    """What a search leaves."""
    path = tmp_path / "best.yaml"
    path.write_text("- optim.lr=0.02\n- data.batch_size=32\n- optim=adamw\n- run_dir=runs/7\n- overrides_from=other\n")
    return path


@pytest.fixture
def last_run(tmp_path: Path) -> Path:
    """The config.yaml of a run on other photos, with another model."""
    config = RunConfig(
        run_dir="runs/last",
        data=DataConfig(root="other photos", hint="look elsewhere", batch_size=32),
        model=ModelConfig(backbone="mobilenet_v2", weights="none", image_size=96, std=[1.0, 2.0, 3.0]),
        optim=OptimConfig(lr=0.02, weight_decay=0.5),
        features=FeaturesConfig(enabled=False),
    )
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    return path


def test_a_list_of_overrides_is_read(best: Path) -> None:
    source = f"overrides_from={best}"
    added = ["optim.lr=0.02", "data.batch_size=32", "optim=adamw"]
    assert prepared(source).argv == [*added, "run_dir=runs/NOW", source]
    config = composed(source, "data.root=photos")
    assert (config.optim.lr, config.data.batch_size, config.optim.algorithm.name) == (0.02, 32, "adamw")


def test_the_overrides_of_a_run_are_such_a_list(tmp_path: Path) -> None:
    path = tmp_path / "overrides.json"
    path.write_text(json.dumps(["seed=5", "run_dir=runs/last"]))
    assert prepared(f"overrides_from={path}").argv[:-1] == ["seed=5", "run_dir=runs/NOW"]


def test_the_command_line_wins_over_a_list(best: Path) -> None:
    config = composed("optim.lr=0.5", f"overrides_from={best}", "optim=adam", "data=folder", "data.root=mine")
    assert (config.optim.lr, config.optim.algorithm.name, config.data.root) == (0.5, "adam", "mine")
    # What a search found stays where the command line does not speak of it, also in a group that it names.
    assert config.data.batch_size == 32


def test_a_run_is_run_again(last_run: Path) -> None:
    config = composed(f"overrides_from={last_run}")
    assert (config.data.root, config.model.std, config.optim.lr) == ("other photos", [1.0, 2.0, 3.0], 0.02)
    assert config.run_dir == "runs/now"


def test_the_command_line_wins_over_a_run(last_run: Path) -> None:
    config = composed(f"overrides_from={last_run}", "optim.lr=0.5", "++model.std=null", "experiment=original_best")
    assert (config.optim.lr, config.model.std) == (0.5, None)
    assert (config.trainer.max_epochs, config.data.batch_size) == (5, 128)
    assert config.data.root == "other photos"


def test_a_group_of_the_command_line_wins_over_a_run(last_run: Path) -> None:
    config = composed(
        f"overrides_from={last_run}", "data=folder", "data.root=mine", "model=resnet50", "features=cached"
    )
    assert (config.data.root, config.data.hint) == ("mine", "")
    assert (config.model.backbone, config.model.weights, config.model.image_size) == ("resnet50", "imagenet1k_v1", None)
    assert config.features.enabled
    assert (config.data.batch_size, config.optim.weight_decay) == (32, 0.5)


def test_a_group_that_leaves_a_key_open_asks_for_it(last_run: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.root is not set"):
        composed(f"overrides_from={last_run}", "data=folder")


def test_what_an_option_chooses_beside_itself_wins_too(last_run: Path) -> None:
    config = composed(f"overrides_from={last_run}", "data=demo")
    assert (config.data.kind.name, config.model.backbone, config.model.image_size) == ("demo", "densenet121", 48)
    assert composed(f"overrides_from={last_run}", "trainer=sagemaker_cpu").launcher.kind.name == "sagemaker"
    # Nobody spoke of the launcher here.
    assert composed(f"overrides_from={last_run}", "trainer=cpu").launcher.kind.name == "local"


def test_every_option_of_a_sweep_wins(last_run: Path) -> None:
    argv = prepared(f"overrides_from={last_run}", "-m", "model=resnet50,small").argv
    assert not [argument for argument in argv if argument.startswith(("model.backbone", "model.image_size"))]
    assert "model.std=[1.0,2.0,3.0]" in argv


def test_an_option_that_does_not_exist_is_left_to_hydra(last_run: Path) -> None:
    assert "model=resnet" in prepared(f"overrides_from={last_run}", "model=resnet").argv


def test_the_last_file_counts_and_null_is_none(best: Path) -> None:
    assert "optim.lr=0.02" in prepared("overrides_from=absent", f"overrides_from={best}").argv
    assert prepared("overrides_from=null").argv == ["run_dir=runs/NOW", "overrides_from=null"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- optim.lrr=1\n", "optim.lrr is not a key of the configuration; the nearest: optim.lr, optim.clip_norm, "),
        ("- optim.lr=fast\n", "optim.lr=fast: accepted is a number above 0"),
        ("optim: {lrr: 1}\n", "optim.lrr is not a key of the configuration; the nearest: optim.lr, optim.clip_norm, "),
        ("optim: {lr: fast}\n", "optim.lr=fast: accepted is a number above 0"),
        ("- optim.lr\n", "optim.lr is no override; accepted is KEY=VALUE"),
        ("- optim.lr: 1\n", "{'optim.lr': 1} is no override; accepted is KEY=VALUE"),
    ],
)
def test_a_file_with_a_mistake_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(text)
    assert refusal(f"overrides_from={path}").startswith(f"overrides_from={path}: {message}")


@pytest.mark.parametrize("content", [None, b"- [", b"\xff\xfe\xff", b"a: 1\na: 2\n"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "best.yaml"
    if content is not None:
        path.write_bytes(content)
    message = refusal(f"overrides_from={path}")
    assert message.startswith(f"overrides_from={path} cannot be read: ")
    assert "\n" not in message


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text("")
    assert prepared(f"overrides_from={path}").argv == ["run_dir=runs/NOW", f"overrides_from={path}"]


# --- help ------------------------------------------------------------------------------------------------------------


def test_the_help_has_every_key_with_its_meaning_and_range() -> None:
    text = " ".join(key_help().split())
    for key, knob in knobs().items():
        assert f" {key} {knob.doc} ({knob.accepted})" in f" {text}"
    for group in GROUPS:
        assert f" {group}: " in text


def test_the_help_fits_a_terminal() -> None:
    lines = key_help().splitlines()
    assert max(map(len, lines)) <= 110
    assert (
        "  optim.label_smoothing       share of the target spread over all classes (a number of at least 0 and below 1)"
        in lines
    )


@pytest.mark.parametrize(
    ("argv", "size"),
    [
        (["seed=0,1,2", "optim.lr=0.1,0.2", "data=demo", "-m"], 6),
        (["seed=0,1,2", "seed=0,1", "-m"], 2),
        (["seed=range(0,4)", "-m"], 4),
        (["model=glob(*)", "-m"], None),
        (["seed=1", "-m"], 1),
    ],
)
def test_the_size_of_a_sweep(argv: list[str], size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", *argv])
    assert sweep_size() == size
