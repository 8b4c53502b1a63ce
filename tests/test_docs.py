"""What the documents tell a reader to type is typed here, as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision import models

from tests.pictures import draw_folder

ROOT = Path(__file__).resolve().parents[1]
BASH = re.compile(r"```bash\n(.*?)```", re.DOTALL)
FIRST_SCREEN = 40  # lines
WEIGHTS = {"resnet50": "resnet50-0676ba61.pth", "mobilenet_v2": "mobilenet_v2-b0353104.pth"}


def commands(document: str) -> list[str]:
    text = (ROOT / document).read_text()
    return [line for block in BASH.findall(text) for line in block.splitlines() if line.strip()]


def make_commands() -> list[str]:
    return [line for line in commands("README.md") if line.startswith("make ")]


def test_the_first_screen_says_what_it_is_and_shows_two_commands() -> None:
    screen = (ROOT / "README.md").read_text().splitlines()[:FIRST_SCREEN]
    assert make_commands() == ["make demo", "make test"]
    assert all(command in screen for command in make_commands())
    assert any("valid" in line for line in screen), "the first screen shows what they print"
    assert any("make test" in line and "runs the tests" in line for line in screen)


def test_the_make_commands_are_run_by_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    assert all(f"step {command}\n" in ci for command in make_commands())


def test_linked_files_exist() -> None:
    for document in [
        "README.md",
        *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
        "docs/decisions/README.md",
    ]:
        folder = (ROOT / document).parent
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text()):
            assert (folder / target).exists(), f"{document} links to {target}"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: the checkout's programs, photos both split and unsplit, and weights in torch.hub's cache."""
    home = tmp_path_factory.mktemp("reader")
    for name in ("train.py", "tune.py", "conf", "serve"):
        (home / name).symlink_to(ROOT / name)
    draw_folder(home / "photos", classes=3, train=6, valid=4, test=4)
    unsplit = home / "unsplit"
    for photo in sorted((home / "photos").glob("*/*/*")):
        target = unsplit / photo.parent.name / f"{photo.parent.parent.name}_{photo.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, target)
    shutil.copy(photo, home / "photo.jpg")
    hub = home / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    for name, file in WEIGHTS.items():
        torch.save(plausible_weights(name), hub / file)
    return home


def plausible_weights(name: str) -> dict[str, torch.Tensor]:
    """Random weights whose features are about one: BatchNorm statistics of noise, and blocks that add little.

    Without the former those of mobilenet_v2 vanish; without the latter those of resnet50 are so large that a search
    finds no learning rate.
    """
    torch.manual_seed(0)
    model = models.get_model(name, num_classes=1000).train()
    for place, parameter in model.named_parameters():
        if place.endswith("bn3.weight"):
            torch.nn.init.constant_(parameter, 0.2)
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(8, 3, 64, 64))
    weights: dict[str, torch.Tensor] = model.state_dict()
    return weights


def run(command: str, home: Path) -> str:
    environment = {**os.environ, "TORCH_HOME": str(home / "torch")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(command, shell=True, cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


# Once each: docs/tune.md begins with a command of the README.
SHOWN = dict.fromkeys(line for page in ("README.md", "docs/tune.md") for line in commands(page))


@pytest.mark.slow
@pytest.mark.parametrize("command", [line for line in SHOWN if not line.startswith("make ")])
def test_command_of_readme_and_search(command: str, reader: Path) -> None:
    run(command, reader)


@pytest.mark.slow
def test_commands_of_the_debugger(reader: Path) -> None:
    for command in commands("docs/debugger.md"):
        run(command, reader)


@pytest.mark.slow
def test_your_data_from_top_to_bottom(reader: Path) -> None:
    for command in commands("docs/your-data.md"):
        run(command.replace(" photos ", " unsplit "), reader)
    notebook = re.search(r"```python\n(.*?)```", (ROOT / "docs/your-data.md").read_text(), re.DOTALL)
    assert notebook is not None
    *lines, answer = notebook[1].strip().splitlines()
    (reader / "notebook.py").write_text("\n".join([*lines, f"print({answer})"]))
    assert "Guess(label='class_" in run("python notebook.py", reader)
