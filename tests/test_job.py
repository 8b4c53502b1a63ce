"""What travels with a job is what the container composes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graft.config import Config, changed, flatten
from graft.errors import ConfigError
from graft.launcher.job import (
    Entry,
    Job,
    hyperparameter_name,
    key_of_hyperparameter,
    metric_line,
    metric_regex,
    read_job,
    write_job,
)
from tests.composing import CONF, composed

AWKWARD = [
    "data.root='a.b/c d'",
    "data.root='with \"both\" kinds'",
    "data.root='Köter/狗/🐕'",
    "data.root='line: #not-a-comment'",
    "data.root='null'",
    f"data.root='{'x' * 3000}'",
    "model.mean=[0.1,0.2,1e-7]",
    "optim.lr=1e-5",
    "optim.lr=3e-17",
    "data.workers=null",
    "optim.schedule=cosine",
    "search.space=['optim.lr=tag(log, interval(1e-4, 1e-1))','data.batch_size=choice(32, 64)']",
]
EXPERIMENTS = [f"experiment={path.stem}" for path in sorted((CONF / "experiment").glob("*.yaml"))]


@pytest.mark.parametrize("override", [*AWKWARD, *EXPERIMENTS])
def test_the_configuration_survives_the_journey(tmp_path: Path, override: str) -> None:
    config = composed(override)
    path = tmp_path / "graft_job.yaml"
    path.write_text(write_job(Job(Entry.train, flatten(config), overrides=(override,))), encoding="utf-8")
    job = read_job(path)
    assert changed(Config(), job.placed({})) == config
    assert job.overrides == (override,)


def test_channels_are_where_the_container_says() -> None:
    channels = {"data.root": "photos", "model.weights": "weights/resnet.pth"}
    job = Job(Entry.train, {"data.root": "here", "model.weights": "there", "seed": 1}, channels)
    assert job.placed({}) == {
        "data.root": "/opt/ml/input/data/photos",
        "model.weights": "/opt/ml/input/data/weights/resnet.pth",
        "seed": 1,
    }
    assert job.placed({"SM_CHANNEL_PHOTOS": "/x/photos"})["data.root"] == "/x/photos"


def test_another_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "graft_job.yaml"
    path.write_text("version: 2\n")
    with pytest.raises(ConfigError, match=r"version 2; accepted is 1, which this release writes"):
        read_job(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"graft_job\.yaml cannot be read"):
        read_job(tmp_path / "graft_job.yaml")


def test_names_of_hyperparameters_lead_back_to_keys() -> None:
    assert hyperparameter_name("data.batch_size") == "data__batch_size"
    assert key_of_hyperparameter("data__batch_size") == "data.batch_size"


def test_the_regex_reads_what_the_line_says() -> None:
    found = re.search(metric_regex("valid/loss"), "x " + metric_line("valid/loss", 0.123456))
    assert found
    assert found[1] == "0.123456"
    assert not re.search(metric_regex("valid/loss"), metric_line("valid/accuracy", 1.0))
