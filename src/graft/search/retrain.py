"""The end of a search: the best trial trained again by the ordinary way, and the better of the two kept."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graft.artifacts import WITHOUT_EFFECT, RunDirectory, differences, read_state
from graft.config import OBJECTIVES, Config, SearchConfig, changed, to_yaml
from graft.data.findings import Finding, summarise
from graft.search.runs import Train
from graft.search.space import Params
from graft.storage import write_atomic

if TYPE_CHECKING:
    import torch

SAME = 1e-4  # two trainings of one trial agree to it in fp32, as tests/test_heads.py shows


@dataclass(frozen=True)
class Retrained:
    """What became of the best trial.

    Attributes:
        run_dir: of the model that was kept.
        metrics: its flat metrics.
        value: of the objective, of the retrained model.
        trial_value: of the trial.
        noise: by how much they may differ: three standard deviations over seeds; None where that was not measured.
        kept: retrained, or trial where that is better beyond noise; where noise is not known, the better of the two.
        toy: whether the photos were drawn by a program.
        remarks: what is wrong with the photos, a line each.
    """

    run_dir: Path
    metrics: dict[str, float]
    value: float
    trial_value: float
    noise: float | None
    kept: str
    toy: bool
    remarks: tuple[str, ...] = ()


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
    worse = directory.with_name(f"{directory.name}-retrained-worse")
    for path in (directory, worse):
        _make_way(path, best)
    if not worse.exists() and read_state(directory).get("state") != "finished":
        train(best, ())
    objective = config.search.objective
    value = _read_metrics(worse if worse.exists() else directory)[objective]
    loss = (trial_value - value) if OBJECTIVES[objective] else (value - trial_value)
    kept = "retrained"
    if worse.exists() or loss > (SAME if noise is None else noise):
        _keep_trial(best, directory, worse, trial_state, train)
        kept = "trial"
    metrics, toy = _read_metrics(directory), config.data.kind.name == "demo"
    return Retrained(directory, metrics, value, trial_value, noise, kept, toy, _read_remarks(directory))


def _read_remarks(directory: Path) -> tuple[str, ...]:
    """What a run says of its photos at its end."""
    rows = json.loads((directory / "data.json").read_text())["findings"]
    return tuple(summarise([Finding(**row) for row in rows]))


def _read_metrics(directory: Path) -> dict[str, float]:
    content: dict[str, float] = json.loads((directory / "metrics.json").read_text())
    return content


def _make_way(directory: Path, config: Config) -> None:
    """Move a run of another configuration aside: more trials have found a better one since."""
    before = directory / "config.yaml"
    if before.exists() and differences(before.read_text(), to_yaml(config), WITHOUT_EFFECT):
        directory.rename(directory.with_name(f"{directory.name}-{read_state(directory).get('id', 'old')[:8]}"))


def _keep_trial(
    config: Config, directory: Path, worse: Path, trial_state: Callable[[], Mapping[str, torch.Tensor]], train: Train
) -> None:
    """Put what the trial trained where the ordinary run keeps its best one, and let it evaluate and bundle that.

    The run keeps its id: the test split counts as opened once. Goes on from wherever an earlier process was killed.
    """
    import torch

    if not worse.exists():
        directory.rename(worse)
    if read_state(directory).get("state") == "finished":
        return
    run = RunDirectory(directory, read_state(worse)["id"])
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    best = torch.load(worse / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)
    best["state_dict"] |= trial_state()
    buffer = io.BytesIO()
    torch.save(best, buffer)
    write_atomic(run.checkpoints / "best.ckpt", buffer.getvalue())
    (run.checkpoints / "finished").touch()
    run.set_state("unfinished")
    train(config, ())
