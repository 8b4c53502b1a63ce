"""The losses in SageMaker Debugger's format too, written by the real smdebug, for who reads them with its trials.

smdebug (last release 2023) lives in an environment of its own (docs/decisions/0001, 0011), so it is imported late.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from graft.debugger.records import EVAL, FOLDER, LOSS, TRAIN
from graft.errors import ConfigError

_NEWEST_PYTHON = (3, 12)


class CrossEntropyLoss(nn.Module):
    """Stands in for the loss before smdebug, which names a tensor after the class of the module that gave it.

    It hands on a loss that the model has computed. The network itself is left alone: smdebug never takes back the
    hooks that it puts on a module, and the model is used on after the fit.
    """

    def forward(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss as it is."""
        return loss


class SmdebugHook:
    """A `LossHook` that drives smdebug's.

    Args:
        run_dir: of the run; trials lie in `debugger/smdebug`, those of a resumed run in `smdebug-2` and so on.
        train_interval: training steps from one written loss to the next.
        eval_interval: validation batches likewise.
    """

    def __init__(self, run_dir: Path, train_interval: int, eval_interval: int) -> None:
        self._intervals = {TRAIN: train_interval, EVAL: eval_interval}
        self._run_dir = run_dir
        self._hook: Any = None
        self._modes: dict[str, Any] = {}
        self._loss = CrossEntropyLoss()

    def start(self, classifier: pl.LightningModule, steps: dict[str, int]) -> None:
        """Begin a trial; its steps go on from `steps`."""
        from smdebug import SaveConfig, SaveConfigMode, modes
        from smdebug.pytorch import Hook

        _mend_for_numpy()
        self._modes = {TRAIN: modes.TRAIN, EVAL: modes.EVAL}
        save = {self._modes[mode]: SaveConfigMode(save_interval=every) for mode, every in self._intervals.items()}
        folder = _free(self._run_dir / FOLDER / "smdebug")
        self._hook = Hook(str(folder), include_regex=f"^{LOSS}$", save_config=SaveConfig(save))
        self._hook.register_module(self._loss)
        for mode, taken in steps.items():
            # It counts from -1: every forward pass adds one before it writes.
            self._hook.mode_steps[self._modes[mode]] = taken - 1
        self._hook.step = sum(steps.values()) - 1

    def record(self, mode: str, step: int, loss: torch.Tensor) -> None:
        """Pass a loss by smdebug's hook, which counts, and writes it where its interval says so."""
        self._hook.set_mode(self._modes[mode])
        self._loss(loss)

    def close(self) -> None:
        """End the trial, so that who reads it does not wait for more."""
        self._hook.close()


def check_backend(backend: str) -> None:
    """Refuse `debugger.backend=smdebug` where it cannot work, before anything else is done.

    Raises:
        ConfigError: smdebug is not installed, or cannot work with this Python.
    """
    if backend != "smdebug":
        return
    advice = "accepted here is graft, whose records need nothing else"
    if sys.version_info[:2] > _NEWEST_PYTHON:
        raise ConfigError(f"debugger.backend=smdebug: smdebug ends at Python 3.12, and this is newer; {advice}")
    if not find_spec("smdebug"):
        raise ConfigError(
            "debugger.backend=smdebug: smdebug is not installed here, where graft's other packages clash with it: "
            f"`make test-smdebug` sets up an environment that has it; {advice}"
        )


class _Array(np.ndarray[Any, Any]):
    """An array with the method that numpy 2.3 dropped, and smdebug calls."""

    def tostring(self) -> bytes:
        return self.tobytes()


def _mend_for_numpy() -> None:
    from smdebug.core import writer
    from smdebug.core.tfevent import util

    def make_tensor_proto(nparray_data: Any, tag: str) -> Any:
        return util.make_tensor_proto(np.asarray(nparray_data).view(_Array), tag)

    writer.make_tensor_proto = make_tensor_proto


def _free(folder: Path) -> Path:
    """The folder, or the first numbered one beside it that is not there: smdebug refuses one that it wrote before."""
    number = 2
    free = folder
    while free.exists():
        free = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return free
