"""conf/ holds together: with the schema, with the modules, and with what its comments say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from graft.config import GROUPS, Config, flatten, knobs
from tests.composing import CONF, ROOT, composed

FILES = sorted(CONF.rglob("*.yaml"))
OPTIONS = [path for path in FILES if path.parent != CONF]
EXPERIMENTS = sorted((CONF / "experiment").glob("*.yaml"))
DIRECTORIES = {path.name for path in CONF.iterdir() if path.is_dir()}


def name_of(path: Path) -> str:
    return path.relative_to(CONF).as_posix()


def is_global(path: Path) -> bool:
    return path.read_text().startswith("# @package _global_\n")


def keys_of(path: Path) -> dict[str, Any]:
    """Dotted key of the whole configuration -> value, as an option's file has them."""
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    content.pop("defaults", None)
    return dict(flat(content if is_global(path) else {path.parent.name: content}))


def flat(tree: dict[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in tree.items():
        found += flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found


def choose(path: Path) -> Config:
    root = [] if keys_of(path).get("data.root", "???") != "???" else ["data.root=photos"]
    return composed(f"{path.parent.name}={path.stem}", *root)


def test_every_directory_is_a_field_of_the_configuration() -> None:
    assert DIRECTORIES - {"experiment"} == set(GROUPS)


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_every_group_has_a_module_of_its_name(group: str) -> None:
    home = ROOT if group == "serve" else ROOT / "src" / "graft"
    assert (home / f"{group}.py").is_file() or (home / group / "__init__.py").is_file()


def test_the_defaults_list_names_every_group() -> None:
    entries = OmegaConf.select(OmegaConf.load(CONF / "config.yaml"), "defaults")
    named = {name for entry in entries if not isinstance(entry, str) for name in entry}
    assert named - {"override hydra/job_logging"} == DIRECTORIES
    assert entries[:2] == ["schema", "_self_"]


@pytest.mark.parametrize("group", sorted(DIRECTORIES))
def test_the_first_file_to_read_lists_the_options_that_exist(group: str) -> None:
    line = re.search(rf"^  - {group}: (\S+) # ([^;\n]*)", (CONF / "config.yaml").read_text(), re.MULTILINE)
    assert line is not None
    listed = line[2].strip().split(" | ")
    assert sorted(listed) == sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert line[1] in [*listed, "null"]


@pytest.mark.parametrize("path", OPTIONS, ids=name_of)
def test_every_key_exists(path: Path) -> None:
    assert set(keys_of(path)) <= set(knobs())


@pytest.mark.parametrize("path", OPTIONS, ids=name_of)
def test_every_option_composes_to_what_its_file_says(path: Path) -> None:
    values = flatten(choose(path))
    said = {key: value for key, value in keys_of(path).items() if value != "???"}
    assert {key: values[key] for key in said} == said


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_the_options_of_a_group_set_the_same_keys(group: str) -> None:
    # Else changing from one option to another, as after overrides_from, leaves something of the first behind.
    options = sorted((CONF / group).glob("*.yaml"))
    keys = {path.stem: {key for key in keys_of(path) if key.startswith(f"{group}.")} for path in options}
    assert all(keys.values())
    assert len({frozenset(names) for names in keys.values()}) == 1, keys


def test_a_demo_selects_the_small_model() -> None:
    config = composed("data=demo")
    assert (config.model.backbone, config.model.weights) == ("densenet121", "none")
    assert composed("data=demo", "model=mobilenet_v2").model.backbone == "mobilenet_v2"


@pytest.mark.parametrize("option", ["sagemaker_cpu", "sagemaker_gpu", "sagemaker_ddp"])
def test_one_word_moves_a_run_to_sagemaker(option: str) -> None:
    config = composed(f"trainer={option}")
    assert config.launcher.kind.name == "sagemaker"
    assert config.trainer.accelerator.name == ("cpu" if option.endswith("cpu") else "gpu")


def test_the_original_runs_have_the_figures_of_the_original() -> None:
    def figures(name: str) -> tuple[int, int, float]:
        config = composed(f"experiment={name}")
        return config.trainer.max_epochs, config.data.batch_size, config.optim.lr

    assert figures("original_best") == (5, 128, 0.00101)
    assert figures("original_worst") == (2, 32, 0.022)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_yaml_names_a_python_object(path: Path) -> None:
    assert "_target_" not in path.read_text()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_every_experiment_says_its_purpose_and_its_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    end = next(at for at, line in enumerate(lines) if not line.startswith("#"))
    *purpose, command = (line.removeprefix("# ") for line in lines[1:end])
    assert len(" ".join(purpose)) >= 40
    assert " ".join(purpose).endswith((".", ")."))
    assert command == f"Run: python train.py experiment={path.stem}"


@pytest.mark.parametrize("key", sorted(knobs()))
def test_every_knob_is_documented_in_a_line(key: str) -> None:
    doc = knobs()[key].doc
    assert 8 <= len(doc) <= 100
    assert "\n" not in doc
    # Hydra's help template would take it for a variable.
    assert "$" not in doc


def test_the_example_commands_of_the_help_compose() -> None:
    footer = OmegaConf.select(OmegaConf.load(CONF / "config.yaml"), "hydra.help.footer")
    commands = re.findall(r"python train\.py (.*?)  +", footer)
    assert len(commands) == 4
    for command in commands:
        argv = [word for word in command.replace("PATH", "photos").split() if "RUN_DIR" not in word]
        composed(*(word.partition(",")[0] for word in argv))
