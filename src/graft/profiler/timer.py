"""The timer: Lightning tells it what it does, and the stopwatch counts.

Lightning calls a Profiler around everything it does, also where there is none; a callback could not tell the wait for
a batch from its transfer. What a GPU was asked to do counts where the run waits for it, for nothing here makes it wait.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import Profiler

from graft.profiler.stopwatch import Stopwatch

_NEXT_BATCH = "[_TrainingEpochLoop].train_dataloader_next"
# By the end of Lightning's name of an action. A callback works inside of a phase that is not its own.
_PHASES = {
    "].train_dataloader_next": "data_wait",
    ".batch_to_device": "transfer",
    ".training_step": "forward",
    ".backward": "backward",
    ".optimizer_step": "optimiser",
    ".on_before_optimizer_step": "other",
    "].val_next": "evaluation_wait",
    ".validation_step": "evaluation_forward",
    "save_checkpoint": "checkpoint",
}
# What the model does inside of the strategy's action of that name, or in no time.
_INNER = ("[LightningModule]", (".training_step", ".validation_step", ".backward", ".on_before_optimizer_step"))
# The first and the last that Lightning does in a validation.
_EVALUATION_BEGINS, _EVALUATION_ENDS = ".on_validation_model_eval", ".on_validation_end"


class Timer(Profiler):
    """Tells a stopwatch what Lightning does."""

    def __init__(self, watch: Stopwatch) -> None:
        super().__init__()
        self.watch = watch
        self._turns: dict[str, tuple[str | None, bool]] = {}
        self._fitting = False

    def start(self, action_name: str) -> None:
        """Lightning begins something."""
        if action_name not in self._turns:
            self._turns[action_name] = turns_of(action_name)
        phase = self._turns[action_name][0]
        if phase is None:
            return
        if action_name == _NEXT_BATCH:
            self._next_step()
        self.watch.enter(phase)

    def stop(self, action_name: str) -> None:
        """Lightning ended something."""
        if self._turns[action_name][1]:
            self.watch.leave()

    def describe(self) -> None:
        """The fit is over, also where it failed: Lightning asks for its summary."""
        if self._fitting:
            self.watch.end_step()
            self._fitting = False

    def _next_step(self) -> None:
        if self._fitting:
            self.watch.end_step()
        else:
            self._fitting = True
            self.watch.become("other")
            self.watch.begin_steps()


def turns_of(action: str) -> tuple[str | None, bool]:
    """The phase that begins as an action of Lightning begins, or None, and whether one ends as it ends."""
    if action.startswith("[LightningModule]") and action.endswith(_EVALUATION_BEGINS):
        return "evaluation", False
    if action.startswith("[Strategy]") and action.endswith(_EVALUATION_ENDS):
        return None, True
    prefix, inner = _INNER
    if action.startswith(prefix) and action.endswith(inner):
        return None, False
    phase = next((phase for ending, phase in _PHASES.items() if action.endswith(ending)), None)
    return phase, phase is not None


class TorchTrace(pl.Callback):
    """torch.profiler over some training steps; its trace opens in Perfetto or chrome://tracing.

    Args:
        path: of the trace, .json.gz.
        steps: that are traced; the first step of the fit, which sets everything up, is not.
    """

    def __init__(self, path: Path, steps: int) -> None:
        self.path, self.steps = path, steps
        self._seen = 0
        self._profile: torch.profiler.profile | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Begin after the first step, end after the last one that was asked for."""
        self._seen += 1
        if self._seen == 1:
            self._profile = torch.profiler.profile()
            self._profile.start()
        elif self._seen == self.steps + 1:
            self._end()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A fit of fewer steps ends the trace."""
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """So does one that fails or is stopped."""
        self._end()

    def _end(self) -> None:
        if self._profile:
            self._profile.stop()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self.path))
            self._profile = None
