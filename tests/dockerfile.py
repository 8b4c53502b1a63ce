"""Executes the steps of a Dockerfile without Docker: in a folder for its root, and a plain virtual environment."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# They say what an image is, or make a user, and leave no file.
WITHOUT_STEPS = {"FROM", "LABEL", "WORKDIR", "USER", "EXPOSE"}


@dataclass
class Image:
    """What the steps left: files below `root`, the environment of a container, and its command."""

    root: Path
    environment: dict[str, str]
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    user: str = "root"


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """Each instruction and its arguments; comments left out, continued lines joined."""
    text = dockerfile.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, arguments = line.partition(" ")
            yield name, arguments.strip()


def execute(dockerfile: Path, context: Path, root: Path) -> Image:
    """Execute all steps; paths of the image lie below `root`, packages go into root/venv.

    Raises:
        ValueError: an instruction that is not known here.
    """
    subprocess.run([sys.executable, "-m", "venv", root / "venv"], check=True)
    path = f"{root / 'venv' / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    image = Image(root, {"PATH": path, "HOME": str(root)})
    for name, arguments in instructions(dockerfile):
        if name == "ENV":
            pairs = (pair.partition("=") for pair in shlex.split(arguments))
            image.environment |= {key: _below(root, value) for key, _, value in pairs}
        elif name == "COPY":
            *sources, target = shlex.split(arguments)
            for source in sources:
                _copy(context / source, root / target.lstrip("/"), into=target.endswith("/"))
        elif name == "RUN" and not arguments.startswith("useradd "):
            subprocess.run(["sh", "-euc", _below(root, arguments)], env=image.environment, check=True)
        elif name == "ENTRYPOINT":
            image.entrypoint = [_below(root, word) for word in json.loads(arguments)]
        elif name == "CMD":
            image.command = json.loads(arguments)
        elif name not in WITHOUT_STEPS | {"RUN"}:
            raise ValueError(f"{name} {arguments}: accepted are the instructions that tests/dockerfile.py executes")
        image.user = arguments if name == "USER" else image.user
    return image


def _below(root: Path, text: str) -> str:
    """The text with the paths of the image's own folder below `root`."""
    return text.replace("/app", f"{root}/app")


def _copy(source: Path, target: Path, *, into: bool) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        return
    place = target / source.name if into else target
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, place)
