"""The design as a test: imports go down only, form no circle, and heavy packages load late.

A group is a module of src/graft, or a package of it as a whole (data, features, launcher). Every
import counts, also one inside a function, except where a rule says "when imported": a package such as
torch may be loaded by a function of a module that must be light to import.
"""

from __future__ import annotations

import ast
import graphlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The table. Entry scripts (the *.py beside pyproject.toml, every __main__.py) are layer 5; so is
# graft/__init__.py, the package's face, which nothing in the package may use.
LAYERS = {
    0: {"errors", "config", "command", "artifacts", "storage", "stores", "images", "inputs", "environment"}
    | {"startup", "terminal"}
    | {
        "shards",
        "s3",
        "mirror",
        "locks",
        "diagnosis",
        "parquet",
        "intervals",
        "plateau",
        "novelty",
        "doubts",
        "budget",
        "signals",
        "openvino_core",
    },
    1: {"transforms", "model", "weights", "optim", "predictor", "processes"},
    2: {"data", "features", "classifier", "evaluate", "metrics", "debugger", "profiler"},
    3: {"trainer", "assembly", "photos", "inspection", "fit", "callbacks", "bundle", "report", "export", "quantise"}
    | {"recording", "rehearsal"},
    4: {"launcher", "search"},
}

# Groups that see less than everything below them.
BASE = LAYERS[0]
SEES_ONLY = {
    "data": BASE | LAYERS[1],
    "classifier": BASE | LAYERS[1],
    "debugger": BASE | LAYERS[1],
    "profiler": BASE | LAYERS[1],
    "features": BASE | LAYERS[1] | {"data"},
    "evaluate": BASE | LAYERS[1] | {"data", "features", "metrics"},
    "metrics": BASE,
    # Receives train as an argument.
    "launcher": BASE | {"features"},
}

# Never loaded by importing layer 0 or an entry script: `--help` and a typo are answered within 1.5 s.
HEAVY = {"torch", "torchvision", "torchmetrics", "pytorch_lightning", "lightning", "openvino", "tensorboard"}
LIGHTNING = {"pytorch_lightning", "lightning"}
# Imported inside the function that needs them, in every layer: extras, slow or not installed.
LATE = {
    "boto3",
    "botocore",
    "sagemaker",
    "optuna",
    "matplotlib",
    "sqlalchemy",
    "psycopg",
    "smdebug",
    "pyarrow",
    "pynvml",
    "uvicorn",
    "starlette",
    "nncf",
}
CONFIG_PACKAGES = {"hydra", "omegaconf"}
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "misc", "manager", "managers"}


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, the line, and whether importing the file loads it."""

    target: str
    line: int
    when_imported: bool


@dataclass(frozen=True)
class Source:
    """A file of the tree: `name` is dotted (graft.data.folder, or train for train.py)."""

    path: Path
    name: str
    imports: tuple[Import, ...]

    @property
    def is_entry(self) -> bool:
        return not self.name.startswith("graft.") or self.name.endswith(".__main__")


def read_tree(root: Path) -> dict[str, Source]:
    """All files under root/src/graft and the scripts in root, by dotted name."""
    package = root / "src" / "graft"
    names = {path: dotted(path.relative_to(package.parent)) for path in sorted(package.rglob("*.py"))}
    names |= {path: path.stem for path in sorted(root.glob("*.py"))}
    known = set(names.values())
    return {name: Source(path, name, tuple(imports_of(path, name, known))) for path, name in names.items()}


def dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, name: str, known: set[str]) -> Iterator[Import]:
    """Every import of a file; `from graft import model` is an import of graft.model."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node, when_imported in statements(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        for target in targets(node, package, known):
            yield Import(target, node.lineno, when_imported)


def statements(node: ast.AST, when_imported: bool = True) -> Iterator[tuple[ast.stmt | ast.Call, bool]]:
    """All imports below a node, each with whether it runs as the file is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom | ast.Call):
            yield child, when_imported
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from ((found, False) for part in child.body for found, _ in statements(wrap(part)))
            yield from (found for part in child.orelse for found in statements(wrap(part), when_imported))
            continue
        deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from statements(child, when_imported and not deferred)


def wrap(statement: ast.stmt) -> ast.Module:
    return ast.Module(body=[statement], type_ignores=[])


def targets(node: ast.stmt | ast.Call, package: str, known: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*parents, *([node.module] if node.module else [])])
        for alias in node.names:
            submodule = f"{base}.{alias.name}"
            yield submodule if submodule in known else base
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def group_of(name: str) -> str:
    """The module or package of graft that a dotted name belongs to; "graft" is the package's face."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def layer_of(name: str) -> int | None:
    """The layer of a graft module (not of an entry); None if it stands in no layer."""
    group = group_of(name)
    return next((layer for layer, groups in LAYERS.items() if group in groups), None)


def problems(root: Path) -> list[str]:
    """Everything in the tree that the design forbids, one sentence each; empty when all is well."""
    tree = read_tree(root)
    found = [text for source in tree.values() for text in name_problems(source)]
    for source in tree.values():
        where = source.path.relative_to(root)
        for imported in source.imports:
            complaint = arrow_problem(source, imported, tree) or package_problem(source, imported)
            if complaint:
                found.append(f"{where}:{imported.line} imports {imported.target}: {complaint}")
    return [*dict.fromkeys(found), *weight_problems(tree), *circle_problems(tree)]


def name_problems(source: Source) -> Iterator[str]:
    vague = VAGUE_NAMES & {word for part in source.name.split(".") for word in part.split("_")}
    if vague:
        yield f"{source.name} is called {sorted(vague)[0]}: name it after what it holds"
    if source.name.startswith("graft.") and not source.is_entry and layer_of(source.name) is None:
        yield f"{source.name} stands in no layer: add {group_of(source.name)} to LAYERS"


def arrow_problem(source: Source, imported: Import, tree: dict[str, Source]) -> str | None:
    """What is wrong with an import of the project's own code, or None."""
    target = imported.target
    if target not in tree or target == source.name:
        return None
    if tree[target].is_entry or target == "graft":
        return None if source.is_entry and target == "graft" else "nothing imports an entry"
    to = layer_of(target)
    if source.is_entry:
        # the launcher is light: it imports what runs the training only when that is known
        light = to == 0 or group_of(target) == "launcher" or not imported.when_imported
        return None if light or source.name.endswith("__main__") else "an entry loads layers above 0 late"
    here, group, other = layer_of(source.name), group_of(source.name), group_of(target)
    if group == other or here is None or to is None:
        return None
    if to > here:
        return f"layer {here} -> {to}, an arrow that goes up"
    if group in SEES_ONLY and other not in SEES_ONLY[group]:
        return f"{group} sees only {', '.join(sorted(SEES_ONLY[group]))}"
    return None


def package_problem(source: Source, imported: Import) -> str | None:
    """What is wrong with an import of somebody else's package, or None."""
    package = imported.target.partition(".")[0]
    knows_config = source.name in ("graft.config", "graft.command") or (source.is_entry and source.name != "graft")
    if package in CONFIG_PACKAGES and not knows_config:
        return "only config.py, command.py and the entries know Hydra and OmegaConf"
    if package in LATE and imported.when_imported:
        return f"{package} is imported inside the function that needs it"
    if package in LIGHTNING and not source.is_entry and layer_of(source.name) in (0, 1):
        return f"layers 0 and 1 do not know {package}"
    return None


def weight_problems(tree: dict[str, Source]) -> Iterator[str]:
    """One sentence for each heavy package that an entry script or a module of layer 0 loads as it is imported."""
    for source in tree.values():
        if "." in source.name and (source.is_entry or layer_of(source.name) != 0):
            continue
        for package, chain in sorted(loaded_by(source.name, tree).items()):
            if package in HEAVY:
                yield f"{source.name} loads {package} when it is imported: {' -> '.join(chain)}"


def loaded_by(name: str, tree: dict[str, Source]) -> dict[str, list[str]]:
    """Every package that importing `name` loads, each with a chain of imports that leads to it."""
    packages: dict[str, list[str]] = {}
    waiting, seen = [[name]], set()
    while waiting:
        chain = waiting.pop(0)
        for target in (i.target for i in tree[chain[-1]].imports if i.when_imported):
            parts = target.split(".")
            packages.setdefault(parts[0], [*chain, target])
            # Importing graft.data.folder runs graft/__init__.py and graft/data/__init__.py first.
            for module in (".".join(parts[:length]) for length in range(1, len(parts) + 1)):
                if module in tree and module not in seen:
                    seen.add(module)
                    waiting.append([*chain, module])
    return packages


def circle_problems(tree: dict[str, Source]) -> Iterator[str]:
    """One sentence for a circle between files, one for a circle between groups."""
    modules = [source for source in tree.values() if not source.is_entry]
    edges = {(source.name, i.target) for source in modules for i in source.imports if i.target in tree}
    edges = {(importer, target) for importer, target in edges if importer != target}
    grouped = {(group_of(a), group_of(b)) for a, b in edges}
    yield from circles(edges, "files")
    yield from circles({(a, b) for a, b in grouped if a != b}, "groups")


def circles(edges: set[tuple[str, str]], kind: str) -> Iterator[str]:
    """One sentence for a circle, where the edges have one."""
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for importer, target in sorted(edges):
        sorter.add(importer, target)
    try:
        sorter.prepare()
    except graphlib.CycleError as circle:
        yield f"a circle of {kind}: {' -> '.join(reversed(circle.args[1]))}"


def test_the_tree_follows_the_design() -> None:
    found = problems(ROOT)
    assert not found, "\n" + "\n".join(found)


def test_the_walker_sees_this_tree() -> None:
    tree = read_tree(ROOT)
    assert {"graft.config", "graft.errors"} <= set(tree)
    assert "graft.errors" in {i.target for i in tree["graft.config"].imports}


def plant(root: Path, files: dict[str, str]) -> Path:
    """A small sound tree with `files` added or replaced; paths from src/graft, or from root where / leads."""
    sound = {
        "__init__.py": "def load(path):\n    from graft.predictor import Predictor\n",
        "errors.py": "",
        "config.py": "from hydra import compose\nfrom graft.errors import ConfigError\n",
        "images.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n",
        "model.py": "import torch\nfrom graft import errors, images\n",
        "predictor.py": "from graft import model\n",
        "data/__init__.py": "from graft.data.folder import Folder\n",
        "data/folder.py": "from ..errors import DataError\n",
        "data/__main__.py": "from graft.data import folder\nfrom graft import trainer\n",
        "features/__init__.py": "",
        "features/cache.py": "from ..data import folder\nfrom graft import model\n",
        "evaluate.py": "from graft import features, data, storage\n",
        "launcher/__init__.py": "",
        "launcher/local.py": "",
        "storage.py": "def fetch():\n    import boto3\n",
        "classifier.py": "import pytorch_lightning\nfrom graft import model\n",
        "trainer.py": "from graft import classifier, data, evaluate\nfrom graft.features import cache\n",
        "/train.py": (
            "import hydra\nfrom graft import config\nfrom graft.launcher import local\n"
            "def main():\n    from graft import trainer\n"
        ),
    }
    for name, text in {**sound, **files}.items():
        path = root / name[1:] if name.startswith("/") else root / "src" / "graft" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_a_sound_tree_has_no_problems(tmp_path: Path) -> None:
    assert problems(plant(tmp_path, {})) == []


# One file of a sound tree replaced or added, and what must be said about it.
FAULTS = [
    ("model.py", "\nfrom graft import trainer", "src/graft/model.py:2 imports graft.trainer: layer 1 -> 3"),
    ("errors.py", "import graft.data.folder as f", "errors.py:1 imports graft.data.folder: layer 0 -> 2"),
    ("images.py", "def f():\n    from graft import model", "images.py:2 imports graft.model: layer 0 -> 1"),
    ("images.py", "import typing\nif typing.TYPE_CHECKING:\n    from graft.model import B", "layer 0 -> 1"),
    (
        "images.py",
        "import importlib\nimportlib.import_module('graft.model')",
        "images.py:2 imports graft.model",
    ),
    ("data/folder.py", "from ..trainer import train", "data/folder.py:1 imports graft.trainer: layer 2 -> 3"),
    ("data/folder.py", "from graft import features", "imports graft.features: data sees only"),
    ("classifier.py", "from graft.data import Folder", "classifier sees only"),
    ("launcher/local.py", "from graft.trainer import train", "launcher sees only"),
    ("errors.py", "from graft.config import Config", "files: graft.config -> graft.errors -> graft.config"),
    ("config.py", "import torch.nn", "graft.config loads torch when it is imported: graft.config -> torch.nn"),
    ("images.py", "class A:\n    import torchvision", "graft.images loads torchvision when it is imported"),
    ("/train.py", "from torch import nn", "train loads torch when it is imported: train -> torch"),
    ("/train.py", "from graft import trainer", "train -> graft.trainer -> graft.classifier -> pytorch_lightning"),
    ("launcher/__init__.py", "import torch", "train -> graft.launcher -> torch"),
    ("__init__.py", "from graft import model", "graft loads torch when it is imported: graft -> graft.model -> torch"),
    ("model.py", "import pytorch_lightning", "layers 0 and 1 do not know pytorch_lightning"),
    ("storage.py", "import boto3", "boto3 is imported inside the function that needs it"),
    ("trainer.py", "from omegaconf import DictConfig", "only config.py, command.py and the entries know Hydra"),
    ("evaluate.py", "def f():\n    import hydra", "only config.py, command.py and the entries know Hydra"),
    ("__init__.py", "import omegaconf", "only config.py, command.py and the entries know Hydra"),
    ("trainer.py", "from graft.data import __main__", "nothing imports an entry"),
    ("trainer.py", "from graft import load", "imports graft: nothing imports an entry"),
    ("data/path_utils.py", "", "graft.data.path_utils is called utils: name it after what it holds"),
    ("zebra.py", "", "graft.zebra stands in no layer: add zebra to LAYERS"),
]


@pytest.mark.parametrize(("file", "text", "message"), FAULTS)
def test_a_planted_fault_is_found(tmp_path: Path, file: str, text: str, message: str) -> None:
    found = problems(plant(tmp_path, {file: text}))
    assert any(message in problem for problem in found), found


def test_a_circle_inside_a_package_is_found(tmp_path: Path) -> None:
    circle = {"data/folder.py": "from graft.data import split", "data/split.py": "from . import folder"}
    assert problems(plant(tmp_path, circle)) == [
        "a circle of files: graft.data.folder -> graft.data.split -> graft.data.folder"
    ]


def test_a_circle_of_groups_without_a_circle_of_files_is_found(tmp_path: Path) -> None:
    circle = {
        "storage.py": "import graft.artifacts.names",
        "artifacts/names.py": "",
        "artifacts/bundle.py": "import graft.storage",
    }
    assert problems(plant(tmp_path, circle)) == ["a circle of groups: artifacts -> storage -> artifacts"]


# serve/ stands beside the package. What answers photos loads layer 0 alone, and sees more late or never; modules of
# endpoints see the launcher's requests too.
SERVES = ("serve.handler", "serve.local", "serve.server")
SERVE_SEES_LATE = {"serve.engines": {"predictor"}, "serve.packing": {"export", "quantise", "data"}}
WEB = {"uvicorn", "starlette"}


@pytest.fixture(scope="module")
def package() -> dict[str, Source]:
    return read_tree(ROOT)


def serve_problems(root: Path, package: dict[str, Source]) -> list[str]:
    """Everything in root/serve that the design forbids, beside the files of the package; one sentence each."""
    names = {path: dotted(path.relative_to(root)) for path in sorted((root / "serve").glob("*.py"))}
    known = {*package, *names.values()}
    own = {name: Source(path, name, tuple(imports_of(path, name, known))) for path, name in names.items()}
    found = [
        f"serve/{source.path.name}:{imported.line} imports {imported.target}: {complaint}"
        for source in own.values()
        for imported in source.imports
        if (complaint := serve_arrow(source.name, imported))
    ]
    found += [
        f"{source.name}:{imported.line} imports {imported.target}: nothing in the package knows serve/"
        for source in package.values()
        for imported in source.imports
        if imported.target.partition(".")[0] == "serve" and source.name.startswith("graft.")
    ]
    for name in SERVES:
        loaded = loaded_by(name, {**package, **own})
        for heavy in sorted(set(loaded) & (HEAVY | LIGHTNING | CONFIG_PACKAGES | LATE - WEB)):
            found.append(f"{name} loads {heavy} when it is imported: {' -> '.join(loaded[heavy])}")
    edges = {(name, i.target) for name, source in own.items() for i in source.imports if i.target in own}
    return [*found, *circles({(importer, target) for importer, target in edges if importer != target}, "files")]


def serve_arrow(name: str, imported: Import) -> str | None:
    """What is wrong with an import of the package by a module of serve/, or None."""
    if not imported.target.startswith("graft.") or layer_of(imported.target) == 0:
        return None
    group = group_of(imported.target)
    if group == "launcher":
        return None if name.startswith("serve.endpoint") else "only serve/endpoint*.py see the launcher"
    if group not in SERVE_SEES_LATE.get(name, set()):
        return f"{name} sees layer 0 alone"
    return f"{name} loads {group} late" if imported.when_imported else None


def test_serve_follows_the_design(package: dict[str, Source]) -> None:
    found = serve_problems(ROOT, package)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("model.py", "from graft.predictor import Predictor", "serve.model sees layer 0 alone"),
        ("engines.py", "from graft.predictor import Predictor", "serve.engines loads predictor late"),
        ("model.py", "def f():\n    from graft.launcher import submit", "only serve/endpoint*.py see the launcher"),
        ("handler.py", "import torch", "serve.handler loads torch when it is imported: serve.handler -> torch"),
        ("layout.py", "import graft.command", "serve.local loads hydra when it is imported"),
        ("reading.py", "import boto3", "serve.handler loads boto3 when it is imported"),
        ("refusals.py", "from serve import reading", "a circle of files: serve.re"),
    ],
)
def test_a_fault_planted_in_serve_is_found(
    tmp_path: Path, package: dict[str, Source], file: str, text: str, message: str
) -> None:
    shutil.copytree(ROOT / "serve", tmp_path / "serve")
    with (tmp_path / "serve" / file).open("a") as module:
        module.write(text + "\n")
    found = serve_problems(tmp_path, package)
    assert any(message in problem for problem in found), found
