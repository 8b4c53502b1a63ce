"""`--help` and a typo are answered at once: by whole processes, which say what they imported."""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from graft.config import GROUPS, knobs
from tests.composing import CONF, ROOT

# torch takes 2 to 6 s to import, Lightning up to 12 s, the others from 0.05 s to seconds.
HEAVY = {
    *("torch", "torchvision", "torchmetrics", "pytorch_lightning", "lightning", "openvino", "tensorboard"),
    *("numpy", "PIL", "simplejpeg", "cv2", "rich", "scipy", "pandas", "boto3", "sagemaker", "optuna"),
}
IMPORTED = re.compile(r"^import time: +\d+ \| +\d+ \| *(\S+)$")


@dataclass(frozen=True)
class Answer:
    """What a process said, and the packages that it imported."""

    code: int
    out: str
    err: str
    packages: frozenset[str]


Train = Callable[..., Answer]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Runs `python train.py ARGV` in an empty directory."""

    def run(*argv: str) -> Answer:
        done = spawn(tmp_path, "-X", "importtime", str(ROOT / "train.py"), *argv)
        lines = done.stderr.splitlines()
        modules = [match[1] for line in lines if (match := IMPORTED.match(line))]
        err = "\n".join(line for line in lines if not line.startswith("import time:"))
        return Answer(done.returncode, done.stdout, err, frozenset(name.partition(".")[0] for name in modules))

    return run


def spawn(cwd: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120"}
    return subprocess.run([sys.executable, *argv], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_the_probe_sees_imports(train: Train) -> None:
    assert {"hydra", "omegaconf", "graft"} <= train("--version").packages


def test_help(train: Train, tmp_path: Path) -> None:
    answer = train("--help")
    assert (answer.code, answer.err) == (0, "")
    assert not answer.packages & HEAVY
    text = " ".join(answer.out.split())
    for group in [*GROUPS, "experiment"]:
        assert f"{group}: {', '.join(sorted(path.stem for path in (CONF / group).glob('*.yaml')))}" in answer.out
    for key, knob in knobs().items():
        assert f"{key} {knob.doc} ({knob.accepted})" in text
    assert "python train.py data=demo " in answer.out
    assert list(tmp_path.iterdir()) == []


def test_help_shows_what_the_command_line_composes(train: Train) -> None:
    answer = train("optim=adamw", "--help", "data.batch_size=7")
    composed = answer.out.partition("composes ==")[2].partition("Examples:")[0]
    tree = OmegaConf.create(composed)
    assert (tree.optim.algorithm, tree.optim.weight_decay, tree.data.batch_size) == ("adamw", 0.01, 7)
    assert set(tree) == {*GROUPS, "seed", "run_dir", "overrides_from"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["optim.lrr=1"],
            "error: optim.lrr is not a key of the configuration; "
            "the nearest: optim.lr, optim.clip_norm, optim.algorithm",
        ),
        (
            ["+data.batchsize=3"],
            "error: data.batchsize is not a key of the configuration; "
            "the nearest: data.batch_size, data.archive, features.batch_size",
        ),
        (["optim.lr=fast"], "error: optim.lr=fast: accepted is a number above 0"),
        (["data.balance=both"], "error: data.balance=both: accepted is none, sampler or loss"),
        (["-m", "optim.lr=1,nan"], "error: optim.lr=nan: accepted is a number above 0"),
        (
            ["data=folder"],
            "error: data.root is not set: folder or s3://BUCKET/PREFIX with train/, valid/ (or val/) and test/; "
            "give data.root=VALUE",
        ),
        (
            ["features.plain=false"],
            "error: features.plain=false needs features.views of at least 1: nothing is left to train on",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_2(train: Train, tmp_path: Path, argv: list[str], message: str) -> None:
    answer = train(*argv)
    assert (answer.code, answer.out, answer.err) == (2, "", message)
    assert not answer.packages & HEAVY
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_does_not_exist_is_answered_with_those_that_do(train: Train) -> None:
    answer = train("data=cats")
    assert answer.code == 1
    assert "Could not find 'data/cats'" in answer.err
    assert "Available options in 'data':\n\tdemo\n\tdogs\n\tfolder\n" in answer.err
    assert not answer.packages & HEAVY


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--info", "defaults"], ["--hydra-help"], ["-m", "--help"]])
def test_the_flags_of_hydra_work(train: Train, tmp_path: Path, flags: list[str]) -> None:
    answer = train(*flags)
    assert (answer.code, answer.err) == (0, "")
    assert not answer.packages & HEAVY
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_of_mistakes_goes_on_and_ends_with_a_table(train: Train, tmp_path: Path) -> None:
    answer = train("-m", "seed=1,2", "trainer=sagemaker_cpu", "run_dir=sweep")
    assert answer.code == 1
    assert answer.err.count("error: launcher=sagemaker needs:") == 2
    assert "runs of sweep" in answer.out
    for number in range(2):
        state = json.loads((tmp_path / "sweep" / str(number) / "run.json").read_text())
        assert (state["state"], state["reason"][:24]) == ("failed", "launcher=sagemaker needs")
    assert not answer.packages & {"torch", "pytorch_lightning"}


def test_a_usage_error_is_exit_2(train: Train) -> None:
    answer = train("--no-such-flag")
    assert answer.code == 2
    assert answer.err.endswith("error: unrecognized arguments: --no-such-flag")


@pytest.mark.parametrize("argument", ["--help", "optim.lrr=1"])
def test_an_answer_takes_little_work(train: Train, argument: str) -> None:
    # Seconds of processor, that others on the machine do not count; torch alone would take more.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    train(argument)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


@pytest.mark.slow
@pytest.mark.parametrize("argument", ["--help", "optim.lrr=1", "data.balance=both"])
def test_an_answer_takes_a_second_and_a_half_at_most(tmp_path: Path, argument: str) -> None:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        spawn(tmp_path, str(ROOT / "train.py"), argument)
        seconds.append(time.perf_counter() - started)
    assert statistics.median(seconds) < 1.5, seconds
