"""Lightning's part of a run: the Trainer, its callbacks, resuming, and stopping in good order."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning import callbacks
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import SIGTERMException

from graft.callbacks import (
    AtomicCheckpoints,
    EarlyStopping,
    LastCheckpoint,
    OnDevice,
    Stop,
    StopAfter,
    damage_told,
)
from graft.classifier import Classifier
from graft.data.module import ImageData
from graft.errors import ConfigError, RunError
from graft.processes import ALONE, PATIENCE, Team
from graft.profiler.timer import Timer
from graft.signals import TOLD, handling


def pick_device(accelerator: str) -> str:
    """`cpu` or `cuda`, for `auto`, `cpu` or `gpu`; on `cuda`, fp32 is fp32 from then on.

    Raises:
        ConfigError: a GPU was asked for and torch sees none.
    """
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu, but torch sees no GPU; accepted here: cpu, auto")
    # By default cuDNN convolves fp32 in TF32, whose 10 bits of mantissa are not what precision=fp32 asks
    # for. Who wants speed has bf16. (Matrix products are fp32 by default.)
    torch.backends.cudnn.allow_tf32 = False
    return "cuda"


def fit(
    classifier: Classifier,
    data: ImageData,
    *,
    checkpoints: Path,
    logs: Path,
    device: str,
    max_epochs: int,
    max_steps: int,
    patience: int | None,
    precision: str,
    checkpoint_minutes: float,
    progress: bool,
    threads: int | None = None,
    team: Team = ALONE,
    watching: Sequence[pl.Callback] = (),
    timer: Timer | None = None,
) -> Classifier:
    """Train, or continue from `last.ckpt`, and return the classifier of the epoch with the lowest valid/loss.

    Args:
        classifier: what trains.
        data: its batches.
        checkpoints: folder of best.ckpt and last.ckpt.
        logs: folder of the CSV and TensorBoard logs.
        device: cpu or cuda.
        max_epochs: number of epochs.
        max_steps: optimiser steps; -1 for no limit.
        patience: epochs without a lower valid/loss before it stops; None for never.
        precision: fp32 or bf16.
        checkpoint_minutes: between checkpoints inside an epoch.
        progress: show a bar.
        threads: of torch while it trains, at most; None leaves them as they are.
        team: the processes that train together; the leader alone writes, and has the best epoch in the end.
        watching: callbacks beside its own.
        timer: is told what Lightning does.

    Raises:
        RunError: valid/loss was not finite in any epoch.
        SystemExit: SIGTERM (143) or Ctrl-C (130) came; the same call goes on from the last checkpoint.
    """
    done, last = checkpoints / "finished", checkpoints / "last.ckpt"
    progress = progress and sys.stderr.isatty()  # in a log, a bar is a hundred lines
    if not team.agree(done.exists()):
        best = callbacks.ModelCheckpoint(
            checkpoints, "best", monitor="valid/loss", save_weights_only=True, enable_version_counter=False
        )
        with _stopping_in_good_order() as stop, _torch_threads(threads):
            others = _callbacks(checkpoints, device, max_steps, patience, checkpoint_minutes, progress)
            trainer = pl.Trainer(
                **_on_machines(device, precision, _strategy(classifier, team), team),
                max_epochs=max_epochs,
                callbacks=[stop, best, *others, *watching],
                logger=_loggers(logs),
                profiler=timer,
                log_every_n_steps=10,
                num_sanity_val_steps=0,
                enable_progress_bar=progress,
                enable_model_summary=False,
                deterministic="warn",
            )
            resumed = last if team.agree(last.exists()) else None
            trainer.fit(classifier, datamodule=data, ckpt_path=resumed, weights_only=True)
        _check_finite(best, classifier.hparams["lr"])
        if team.leads:
            done.touch()
    return load_best(classifier, checkpoints) if team.leads else classifier


def load_best(classifier: Classifier, checkpoints: Path) -> Classifier:
    """The classifier with the weights of best.ckpt, in eval mode on the CPU; its frozen part is not read again."""
    path = checkpoints / "best.ckpt"
    if path.exists():  # not where trainer.max_steps=0
        with damage_told(path):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        classifier.on_load_checkpoint(checkpoint)
        classifier.load_state_dict(checkpoint["state_dict"])
    return classifier.eval().cpu()


def quiet_lightning() -> None:
    """Leave the terminal to graft's own lines."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # The advice to use loader workers is wrong for cached features, and data.workers says it for images.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")
    # It means to: a frozen backbone is in eval mode.
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")
    # Lightning 2.6 calls what torch 2.14 is about to remove.
    warnings.filterwarnings("ignore", ".isinstance.treespec, LeafSpec", FutureWarning)


def _on_machines(device: str, precision: str, strategy: DDPStrategy | str, team: Team) -> dict[str, Any]:
    """What Lightning's Trainer must know of the processes and their devices."""
    return {
        "accelerator": "gpu" if device == "cuda" else "cpu",
        "devices": team.local_size,
        "num_nodes": team.machines,
        "strategy": strategy,
        "use_distributed_sampler": False,  # EpochOrder gives each process its part
        "sync_batchnorm": team.size > 1 and device == "cuda",
        "precision": "bf16-mixed" if precision == "bf16" else "32-true",
        "plugins": [AtomicCheckpoints(team), *([LightningEnvironment()] if team.size == 1 else [])],
    }


def _strategy(classifier: Classifier, team: Team) -> DDPStrategy | str:
    if team.size == 1:
        return "auto"
    # A frozen backbone's BatchNorm statistics are alike in all processes and stay so: nothing to send every step.
    return DDPStrategy(forward_sync_buffers=classifier.hparams["unfreeze"] != "head", timeout=PATIENCE)


def _callbacks(
    checkpoints: Path, device: str, max_steps: int, patience: int | None, checkpoint_minutes: float, progress: bool
) -> list[pl.Callback]:
    interval = timedelta(minutes=checkpoint_minutes)
    every: list[pl.Callback] = [
        OnDevice(device),
        # Two writers of last.ckpt: one at the end of every epoch, one inside long epochs.
        LastCheckpoint(checkpoints, "last", enable_version_counter=False, save_on_exception=True),
        LastCheckpoint(checkpoints, "last", enable_version_counter=False, train_time_interval=interval),
    ]
    if max_steps >= 0:
        every.append(StopAfter(max_steps))
    if patience is not None:
        every.append(EarlyStopping("valid/loss", patience=patience))
    if progress:
        every.append(callbacks.RichProgressBar(leave=False, console_kwargs={"stderr": True}))
    return every


def _loggers(logs: Path) -> list[Logger]:
    return [CSVLogger(logs, name="csv"), TensorBoardLogger(logs, name="tensorboard")]


def _check_finite(best: callbacks.ModelCheckpoint, lr: float) -> None:
    score = best.best_model_score
    if score is not None and not score.isfinite():
        raise RunError(f"training diverged: valid/loss was not finite in any epoch; optim.lr={lr}, try a lower one")


@contextmanager
def _torch_threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(count or before, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _stopping_in_good_order() -> Iterator[Stop]:
    """Ctrl-C and SIGHUP end the fit as SIGTERM does: after the running batch, with a checkpoint.

    A second Ctrl-C ends it at once.
    """
    stop = Stop()
    try:
        with handling(dict.fromkeys((signal.SIGINT, *TOLD), stop.note)):
            yield stop
    except SIGTERMException:
        raise SystemExit(stop.code) from None
    if stop.signals:
        raise SystemExit(stop.code)
