"""Trials that cannot share a pass: one ordinary run after another, each in a run directory of its own."""

from __future__ import annotations

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
from graft.config import Config, EvaluateConfig, SearchConfig, changed
from graft.debugger.records import EVAL
from graft.fit import pick_device
from graft.report.losses import logged
from graft.search.runs_watch import AtRung, Diverged, Pruned, Watch
from graft.search.space import Params, Space, ends
from graft.search.trials import Curve, Outcome, Trial

AtEnd = Callable[[int, Outcome], None]
_OF_LENGTH = ("data.batch_size", "trainer.max_epochs", "trainer.max_steps")  # what a trial's number of steps is of


class Train(Protocol):
    """The ordinary `train`."""

    def __call__(self, config: Config, overrides: tuple[str, ...], *, watching: Sequence[pl.Callback] = ()) -> Any:
        """Train, evaluate and bundle one model."""
        ...


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
        started, objective = time.perf_counter(), self.config.search.objective
        watch = Watch(trial.number, rungs, at_rung)
        state, reason, value = "ok", "", None
        try:
            config = _trial_config(self.config, trial.params, directory)
            _start_afresh(directory)
            if read_state(directory).get("state") != "finished":
                # what a killed process left of it goes on from its last checkpoint
                self.train(config, (), watching=[watch])
            value = json.loads((directory / "metrics.json").read_text())[objective]
        except Pruned as stop:
            state, reason, value = "pruned", str(stop), watch.best(objective)
        except Diverged as error:
            state, reason = "diverged", str(error)
        except Exception as error:  # any: one trial's failure is not the search's
            state, reason = "failed", f"{type(error).__name__}: {error}".splitlines()[0][:500]
        curve = tuple(sorted({**dict(read_curve(directory)), **dict(watch.curve)}.items()))
        steps = max(watch.step, curve[-1][0] if curve else 0)
        return Outcome(state, value, reason, time.perf_counter() - started, curve, steps)


def known_at_rungs(objective: str) -> bool:
    """Whether an objective is known at a rung; the others are computed at a trial's end only."""
    return objective in ("valid/loss", "valid/accuracy")


def read_curve(directory: Path) -> Curve:
    """(optimiser steps taken, valid/loss) of a run at its ends of epochs, ascending, from its CSV logs."""
    losses = logged(directory).modes.get(EVAL)
    return tuple(zip(losses.step.tolist(), losses.value.tolist(), strict=True)) if losses else ()


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


def lengths(config: Config, space: Space, photos: int) -> tuple[int, int]:
    """Optimiser steps of the shortest and of the longest trial of a space, for `photos` training images."""
    batches, epochs, limits = (ends(space, config, key) for key in _OF_LENGTH)
    highest = [math.inf if limit < 0 else limit for limit in limits]
    shortest = min(math.ceil(photos / max(batches)) * min(epochs), *highest)
    return int(shortest), int(min(math.ceil(photos / min(batches)) * max(epochs), max(highest)))
