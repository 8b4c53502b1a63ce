"""What Lightning is told beside its own callbacks: resume exactly, stop in good order, run where it was said."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import callbacks
from pytorch_lightning.utilities.exceptions import SIGTERMException

from graft.errors import ConfigError, RunError
from graft.processes import Team
from graft.storage import write_atomic
from graft.weights import UNREADABLE


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, but a run that was killed after it had decided to stop does not train on."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decide again from the state that the checkpoint brought back."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class OnDevice(callbacks.Callback):
    """It is an error, not a slow run, when the model is not where it was asked to be."""

    def __init__(self, device: str) -> None:
        self.device = device

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at where the weights are."""
        used = {parameter.device.type for parameter in pl_module.parameters()}
        if used != {self.device}:
            raise ConfigError(f"trainer.accelerator asked for {self.device}, but the model is on {', '.join(used)}")


class Stop(callbacks.Callback):
    """The signals that told this process to stop; Lightning obeys SIGTERM alone, and only while it fits."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    @property
    def code(self) -> int:
        """The exit code of a process that was told so, as a shell has it."""
        told = (signum for signum in (signal.SIGINT, signal.SIGHUP) if signum in self.signals)
        return 128 + next(told, signal.SIGTERM)

    def note(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if signum == signal.SIGINT and signum in self.signals:
            raise SystemExit(self.code)
        self.signals.append(signum)
        if signum != signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell Lightning what came before it listened.

        Of several processes, each leaves at once: Lightning 2.6 has its signal handlers talk to each other, while
        any of them may be waiting for a gradient. What is lost is the time since the last checkpoint.
        """
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, self._leave)
        if self.signals:
            signal.raise_signal(signal.SIGTERM)

    def _leave(self, signum: int, frame: FrameType | None) -> None:
        raise SystemExit(self.code)


class StopAfter(callbacks.Callback):
    """Ends the fit after a number of steps, with a validation; Lightning's own `max_steps` ends without one.

    Its `max_steps` also makes every fit count as one that continues, so that a resumed epoch is miscounted.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A fit that had done all its steps when it was killed does none."""
        self._stop_if_done(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Count the step that was taken."""
        self._stop_if_done(trainer)

    def _stop_if_done(self, trainer: pl.Trainer) -> None:
        if trainer.global_step >= self.max_steps:
            trainer.should_stop = True


class EpochMetrics(callbacks.Callback):
    """Tells the metrics of each epoch to whoever follows the run from elsewhere; the leader alone does."""

    def __init__(self, tell: Callable[[Mapping[str, Any]], None]) -> None:
        self._tell = tell

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All metrics of the epoch are known."""
        if trainer.is_global_zero:
            self._tell(trainer.callback_metrics)


class LastCheckpoint(callbacks.ModelCheckpoint):
    """last.ckpt, written only at moments from which the fit goes on exactly."""

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        """Not after the last batch: Lightning would take the epoch for done and leave out its validation."""
        if not trainer.is_last_batch and not trainer.should_stop:
            super().on_train_batch_end(trainer, *rest)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Only SIGTERM is answered between two batches; after another exception a batch may be half done.

        A validation that it cut short has to come again: the checkpoint before it is left as it is.
        """
        validation_due = trainer.is_last_batch or trainer.should_stop
        if isinstance(exception, SIGTERMException) and not validation_due:
            super().on_exception(trainer, pl_module, exception)


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """What reading a damaged checkpoint raises becomes one sentence.

    Raises:
        RunError: in place of it.
    """
    try:
        yield
    except UNREADABLE as error:
        raise RunError(
            f"{path} is damaged; delete {path.parent} and the same command trains from the start: features are kept"
        ) from error


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's goes through the temporary folder, and is torn by a kill where that is another file system.

    Of several processes, the leader writes and reads: other machines need not see its files.
    """

    def __init__(self, team: Team) -> None:
        super().__init__()
        self._team = team

    def load_checkpoint(self, path: str | Path, *rest: Any, **options: Any) -> dict[str, Any]:
        """What the leader reads."""
        with damage_told(Path(path)):
            read = super().load_checkpoint(path, *rest, **options) if self._team.leads else {}
        return self._team.agree(read)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint so that the old one or the whole new one is there."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomic(Path(path), buffer.getvalue())
