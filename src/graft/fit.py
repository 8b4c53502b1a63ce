"""Lightning's part of a run: the Trainer, its callbacks, resuming, and stopping in good order."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType

import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from graft.classifier import Classifier
from graft.data.module import ImageData
from graft.errors import ConfigError

INTERRUPTED, TERMINATED = 130, 143  # exit codes of a shell for SIGINT and SIGTERM


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, but a run that was killed after it had decided to stop does not train on."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decide again from the state that the checkpoint brought back."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


def pick_device(accelerator: str) -> str:
    """`cpu` or `cuda`, for `auto`, `cpu` or `gpu`.

    Raises:
        ConfigError: a GPU was asked for and torch sees none.
    """
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu, but torch sees no GPU; accepted here: cpu, auto")
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

    Raises:
        SystemExit: SIGTERM (143) or Ctrl-C (130) came; a checkpoint was written.
    """
    best = callbacks.ModelCheckpoint(checkpoints, "best", monitor="valid/loss", enable_version_counter=False)
    done = checkpoints / "finished"
    if not done.exists():
        trainer = pl.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            max_epochs=max_epochs,
            max_steps=max_steps,
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            callbacks=[best, *_callbacks(checkpoints, patience, checkpoint_minutes, progress)],
            logger=_loggers(logs),
            log_every_n_steps=10,
            num_sanity_val_steps=0,
            enable_progress_bar=progress,
            enable_model_summary=False,
            deterministic="warn",
        )
        last = checkpoints / "last.ckpt"
        with _stopping_in_good_order():
            trainer.fit(classifier, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)
        _check_device(classifier, device)
        done.touch()
    return load_best(classifier, checkpoints)


def load_best(classifier: Classifier, checkpoints: Path) -> Classifier:
    """The classifier with the weights of best.ckpt, in eval mode on the CPU; its frozen part is not read again."""
    path = checkpoints / "best.ckpt"
    if path.exists():  # not after a run without a single validation
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


def _callbacks(checkpoints: Path, patience: int | None, checkpoint_minutes: float, progress: bool) -> list[pl.Callback]:
    interval = timedelta(minutes=checkpoint_minutes)
    every: list[pl.Callback] = [
        # Two writers of last.ckpt: one at the end of every epoch, one inside long epochs.
        callbacks.ModelCheckpoint(checkpoints, "last", enable_version_counter=False, save_on_exception=True),
        callbacks.ModelCheckpoint(checkpoints, "last", enable_version_counter=False, train_time_interval=interval),
    ]
    if patience is not None:
        every.append(EarlyStopping("valid/loss", patience=patience))
    if progress:
        every.append(callbacks.RichProgressBar(leave=False))
    return every


def _loggers(logs: Path) -> list[Logger]:
    return [CSVLogger(logs, name="csv"), TensorBoardLogger(logs, name="tensorboard")]


def _check_device(classifier: Classifier, device: str) -> None:
    used = next(classifier.head.parameters()).device.type
    if used not in (device, "cpu") or (device == "cuda" and not torch.cuda.max_memory_allocated()):
        raise ConfigError(f"trainer.accelerator asked for {device}, but the model was on {used}")


@contextmanager
def _stopping_in_good_order() -> Iterator[None]:
    """Ctrl-C ends the fit as SIGTERM does: after the running batch, with a checkpoint. Twice ends it at once."""
    pressed = False

    def interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        signal.raise_signal(signal.SIGTERM)

    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, interrupt) if in_main_thread else None
    try:
        yield
    except SIGTERMException:
        raise SystemExit(INTERRUPTED if pressed else TERMINATED) from None
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, before)
