"""The end of a search: the best trial trained again by the ordinary way, and the better of the two kept."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graft.artifacts import RunDirectory, read_state
from graft.config import OBJECTIVES, Config, SearchConfig, changed, to_yaml
from graft.search.runs import Train
from graft.search.space import Params
from graft.storage import write_atomic

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Retrained:
    """What became of the best trial.

    Attributes:
        run_dir: of the model that was kept.
        metrics: its flat metrics.
        value: of the objective, of the retrained model.
        trial_value: of the trial.
        noise: by how much they may differ: three standard deviations over seeds; None where that was not measured.
        kept: retrained, or trial where that is better beyond noise.
        toy: whether the photos were drawn by a program.
    """

    run_dir: Path
    metrics: dict[str, float]
    value: float
    trial_value: float
    noise: float | None
    kept: str
    toy: bool


def retrain(
    config: Config,
    params: Params,
    trial_value: float,
    noise: float | None,
    train: Train,
    directory: Path,
    trial_state: Callable[[], Mapping[str, torch.Tensor]],
) -> Retrained:
    """Train the best configuration into `directory`, or read what an earlier process trained there.

    Args:
        config: of the search.
        params: of the best trial.
        trial_value: its objective.
        noise: see `Retrained`.
        train: the ordinary `train`.
        directory: of the run.
        trial_state: what the trial trained, to be kept where the retrained model is worse.
    """
    # Without the search's own settings: more trials with the same best need no second opening of test.
    best = changed(dataclasses.replace(config, run_dir=str(directory), search=SearchConfig()), params)
    _make_way(directory, best)
    if read_state(directory).get("state") != "finished":
        train(best, ())
    metrics = json.loads((directory / "metrics.json").read_text())
    objective = config.search.objective
    value = float(metrics[objective])
    loss = (trial_value - value) if OBJECTIVES[objective] else (value - trial_value)
    kept = "retrained"
    if noise is not None and loss > noise:
        _keep_trial(best, directory, trial_state(), train)
        metrics = json.loads((directory / "metrics.json").read_text())
        kept = "trial"
    return Retrained(directory, metrics, value, trial_value, noise, kept, toy=config.data.kind.name == "demo")


def _make_way(directory: Path, config: Config) -> None:
    """Move a run of another configuration aside: more trials have found a better one since."""
    before = directory / "config.yaml"
    if before.exists() and before.read_text() != to_yaml(config):
        directory.rename(directory.with_name(f"{directory.name}-{read_state(directory).get('id', 'old')[:8]}"))


def _keep_trial(config: Config, directory: Path, state: Mapping[str, torch.Tensor], train: Train) -> None:
    """Put what the trial trained where the ordinary run keeps its best one, and let it evaluate and bundle that.

    The run keeps its id: the test split counts as opened once.
    """
    import torch

    run_id = read_state(directory)["id"]
    worse = directory.with_name(f"{directory.name}-retrained-worse")
    directory.rename(worse)
    run = RunDirectory(directory, run_id)
    run.checkpoints.mkdir(parents=True)
    run.set_state("unfinished")
    before = torch.load(worse / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)
    before["state_dict"] |= state
    buffer = io.BytesIO()
    torch.save(before, buffer)
    write_atomic(run.checkpoints / "best.ckpt", buffer.getvalue())
    (run.checkpoints / "finished").touch()
    train(config, ())
