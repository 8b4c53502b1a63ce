"""Trials that cannot share a pass: one ordinary run after another, each in a run directory of its own."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch

from graft.artifacts import read_state
from graft.assembly import open_folder
from graft.config import OBJECTIVES, Config, EvaluateConfig, SearchConfig, changed
from graft.errors import GraftError, RunError
from graft.fit import pick_device
from graft.search.pruning import divergence
from graft.search.space import Params, Space, fewest, most
from graft.search.trials import Curve, Outcome, Trial

# (number, optimiser step, valid/loss, valid/accuracy) -> whether the trial goes on
AtRung = Callable[[int, int, float, float], bool]
AtEnd = Callable[[int, Outcome], None]


class Train(Protocol):
    """The ordinary `train`."""

    def __call__(self, config: Config, overrides: tuple[str, ...], *, watching: Sequence[pl.Callback] = ()) -> Any:
        """Train, evaluate and bundle one model."""
        ...


class Pruned(GraftError):
    """A trial was stopped at a rung."""


class RunTrials:
    """Runs trials one by one through the ordinary path.

    Args:
        config: of the search; a trial changes its parameters.
        directory: of the search; its trials' run directories stand in `trials`.
        train: the ordinary `train`.
    """

    together = False

    def __init__(self, config: Config, directory: Path, train: Train) -> None:
        self.config, self.directory, self.train = config, directory, train

    def prepare(self) -> None:
        """Find the photos and the device: what no trial can do without is an error of the search."""
        pick_device(self.config.trainer.accelerator.value)
        open_folder(self.config)

    def lengths(self, space: Space) -> tuple[int, int]:
        """Optimiser steps of the shortest and of the longest trial."""
        return lengths(self.config, space, len(open_folder(self.config).train))

    def run(self, trials: Sequence[Trial], rungs: Sequence[int], at_rung: AtRung, at_end: AtEnd) -> None:
        """Run trials; whatever one of them raises is its outcome, and the rest go on."""
        for trial in trials:
            directory = self.directory / "trials" / f"{trial.number:03d}"
            at_end(trial.number, self._outcome(trial, directory, rungs, at_rung))

    def repeat(self, params: Sequence[Params], seeds: Sequence[int]) -> list[list[Outcome]]:
        """By set of parameters: its outcomes with other seeds."""
        return [[self._repeat(mine, seed) for seed in seeds] for mine in params]

    def state(self, number: int, params: Params) -> dict[str, torch.Tensor]:
        """What a trial trained, as `Classifier` names it."""
        path = self.directory / "trials" / f"{number:03d}" / "checkpoints" / "best.ckpt"
        state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        return state

    def _repeat(self, params: Params, seed: int) -> Outcome:
        mine = {**params, "seed": seed}
        name = hashlib.blake2b(json.dumps(mine, sort_keys=True).encode(), digest_size=6).hexdigest()
        return self._outcome(Trial(0, mine), self.directory / "repeats" / name, (), lambda *_: True)

    def _outcome(self, trial: Trial, directory: Path, rungs: Sequence[int], at_rung: AtRung) -> Outcome:
        started = time.perf_counter()
        pruner = _StopAtRung(trial.number, rungs, at_rung)
        try:
            config = _trial_config(self.config, trial.params, directory)
            _start_afresh(directory)
            if read_state(directory).get("state") != "finished":
                # what a killed process left of it goes on from its last checkpoint
                self.train(config, (), watching=[pruner])
        except Pruned as stop:
            return _ended(directory, "pruned", str(stop), started, pruner.best(self.config.search.objective))
        except Exception as error:  # any: one trial's failure is not the search's
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:500]
            state = "diverged" if "training diverged" in reason else "failed"
            return _ended(directory, state, reason, started, None)
        metrics = json.loads((directory / "metrics.json").read_text())
        value = metrics[self.config.search.objective]
        curve = read_curve(directory)
        reason = divergence(math.log(max(2, _classes(directory))), [loss for _, loss in curve])
        return _ended(directory, "diverged" if reason else "ok", reason, started, None if reason else value)


def known_at_rungs(objective: str) -> bool:
    """Whether an objective is known at a rung; the others are computed at a trial's end only."""
    return objective in ("valid/loss", "valid/accuracy") and objective in OBJECTIVES


def read_curve(directory: Path) -> Curve:
    """(optimiser steps taken, valid/loss) of a run, ascending, from its CSV logs; those of resumed parts joined."""
    found: dict[int, float] = {}
    for path in sorted((directory / "logs" / "csv").glob("version_*/metrics.csv"), key=lambda p: p.stat().st_mtime):
        with path.open(newline="") as file:
            rows = csv.DictReader(file)
            found |= {int(row["step"]) + 1: float(row["valid/loss"]) for row in rows if row.get("valid/loss")}
    return tuple(sorted(found.items()))


class _StopAtRung(pl.Callback):
    """Asks at the first validation after each rung whether the trial goes on."""

    def __init__(self, number: int, rungs: Sequence[int], at_rung: AtRung) -> None:
        self.number, self.at_rung = number, at_rung
        self._left = sorted(rungs)
        self._seen: list[tuple[float, float]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask, once for the rungs that was passed."""
        loss = float(trainer.callback_metrics["valid/loss"])
        accuracy = float(trainer.callback_metrics["valid/accuracy"])
        if not math.isfinite(loss):
            raise RunError(f"training diverged: valid/loss is {loss} after {trainer.global_step} optimiser steps")
        self._seen.append((loss, accuracy))
        passed = [rung for rung in self._left if rung <= trainer.global_step]
        self._left = self._left[len(passed) :]
        if passed and not self.at_rung(self.number, passed[-1], loss, accuracy):
            raise Pruned(f"stopped at rung {passed[-1]} (optimiser steps)")

    def best(self, objective: str) -> float | None:
        """The best value of the objective so far; None where it is not known before a trial's end."""
        if objective == "valid/loss":
            return min((loss for loss, _ in self._seen), default=None)
        return max((accuracy for _, accuracy in self._seen), default=None) if objective == "valid/accuracy" else None


def _trial_config(config: Config, params: Params, directory: Path) -> Config:
    """An ordinary run's, with test shut and bars off."""
    trainer = dataclasses.replace(config.trainer, progress=False)
    quiet = dataclasses.replace(
        config,
        run_dir=str(directory),
        evaluate=EvaluateConfig(test=False),
        trainer=trainer,
        search=SearchConfig(),  # a search that goes on with more trials goes on with its interrupted ones too
    )
    return changed(quiet, params)


def _start_afresh(directory: Path) -> None:
    """A run that failed is not gone on with; one that was interrupted is."""
    if read_state(directory).get("state") == "failed":
        shutil.rmtree(directory)


def _ended(directory: Path, state: str, reason: str, started: float, value: float | None) -> Outcome:
    curve = read_curve(directory)
    steps = curve[-1][0] if curve else 0
    return Outcome(state, value, reason, time.perf_counter() - started, curve, steps)


def _classes(directory: Path) -> int:
    content = json.loads((directory / "data.json").read_text())
    return len(content["classes"]["train"])


def steps(config: Config, photos: int, batch_size: int, epochs: int) -> int:
    """Optimiser steps of a trial that is not stopped early."""
    whole = math.ceil(photos / batch_size) * epochs
    return whole if config.trainer.max_steps < 0 else min(whole, config.trainer.max_steps)


def lengths(config: Config, space: Space, photos: int) -> tuple[int, int]:
    """Optimiser steps of the shortest and of the longest trial of a space, for `photos` training images."""
    batch, epochs = "data.batch_size", "trainer.max_epochs"
    shortest = steps(config, photos, most(space, config, batch), fewest(space, config, epochs))
    return shortest, steps(config, photos, fewest(space, config, batch), most(space, config, epochs))
