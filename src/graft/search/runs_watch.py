"""What is watched of a trial that runs by itself: rungs, and divergence, by the rules of heads that train together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn import functional

from graft.errors import GraftError
from graft.search.pruning import divergence
from graft.search.trials import Curve, Point

# (number, optimiser step, valid/loss, valid/accuracy) -> whether the trial goes on
AtRung = Callable[[int, int, float, float], bool]


class Pruned(GraftError):
    """A trial was stopped at a rung."""


class Diverged(GraftError):
    """The losses of a trial are past hope."""


class Watch(pl.Callback):
    """Looks at valid at each rung, asks there whether the trial goes on, and ends it where it has diverged.

    What it has seen is kept in the run's checkpoints, so that a trial that was interrupted is judged as a whole one.

    Args:
        number: of the trial.
        rungs: optimiser steps at which it is compared; not that of its last step, where there is nothing to save.
        at_rung: is asked.

    Attributes:
        points: rungs and ends of epochs so far.
    """

    def __init__(self, number: int, rungs: Sequence[int], at_rung: AtRung) -> None:
        self.number, self.rungs, self.at_rung = number, frozenset(rungs), at_rung
        self.points: list[Point] = []
        self.step = 0
        self._first: float | None = None
        self._sum, self._count = torch.zeros(()), 0  # of the training loss in this epoch

    @property
    def curve(self) -> Curve:
        """(optimiser steps taken, valid/loss), ascending."""
        return tuple((point.step, point.valid_loss) for point in self.points)

    def best(self, objective: str) -> float | None:
        """The best value at the end of an epoch; None where there was none, or it is not known before a trial's end."""
        ends = [point for point in self.points if point.ends_epoch]
        if objective == "valid/loss":
            return min((point.valid_loss for point in ends), default=None)
        return max((point.valid_accuracy for point in ends), default=None) if objective == "valid/accuracy" else None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Count the training loss; at a rung inside an epoch look at valid, and ask."""
        loss = outputs["loss"].detach()
        self._first = float(loss) if self._first is None else self._first
        self._sum, self._count = self._sum.to(loss.device) + loss, self._count + 1
        self.step = trainer.global_step
        # At the end of an epoch Lightning looks.
        if self.step in self.rungs and not trainer.is_last_batch and not trainer.should_stop:
            self._add(trainer, *look(trainer, pl_module), ends_epoch=False)
            self._ask(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take in what Lightning found at the end of an epoch, or of the run."""
        loss, accuracy = (float(trainer.callback_metrics[f"valid/{name}"]) for name in ("loss", "accuracy"))
        self._add(trainer, loss, accuracy, ends_epoch=True)
        self._sum, self._count = torch.zeros(()), 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask where an epoch ends at a rung, now that patience has said whether there is another."""
        if self.step in self.rungs and not _is_over(trainer):
            self._ask(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain values."""
        points = [asdict(point) for point in self.points]
        return {"first": self._first, "sum": float(self._sum), "count": self._count, "points": points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._first, self._count = state_dict["first"], state_dict["count"]
        self._sum = torch.tensor(state_dict["sum"])
        self.points = [Point(**point) for point in state_dict["points"]]

    def _add(self, trainer: pl.Trainer, loss: float, accuracy: float, *, ends_epoch: bool) -> None:
        step, train_loss = trainer.global_step, float(self._sum) / self._count if self._count else loss
        epoch = step // int(trainer.num_training_batches)
        self.points.append(Point(step, epoch, ends_epoch, train_loss, loss, accuracy))
        first = train_loss if self._first is None else self._first
        if reason := divergence(first, self.points, finished=_is_over(trainer)):
            raise Diverged(reason)

    def _ask(self, trainer: pl.Trainer) -> None:
        last = self.points[-1]
        if not self.at_rung(self.number, last.step, last.valid_loss, last.valid_accuracy):
            raise Pruned(f"stopped at step {last.step}, with valid/loss {last.valid_loss:.4g}")


def look(trainer: pl.Trainer, classifier: pl.LightningModule) -> tuple[float, float]:
    """valid/loss and valid/accuracy as the run would find them, in the middle of an epoch that goes on untouched.

    Not Lightning's own validation: checkpoints and patience would take it for the end of an epoch.
    """
    modes = {module: module.training for module in classifier.modules()}
    classifier.eval()
    loss, right, count = 0.0, 0, 0
    with torch.no_grad(), trainer.precision_plugin.val_step_context():
        for inputs, labels in trainer.datamodule.val_dataloader():  # type: ignore[attr-defined]
            logits, labels = classifier.logits(inputs), labels.to(classifier.device)  # type: ignore[operator]
            loss += float(functional.cross_entropy(logits.float(), labels, reduction="sum"))
            right += int((logits.argmax(1) == labels).sum())
            count += len(labels)
    for module, training in modes.items():
        module.training = training
    return loss / count, right / count


def _is_over(trainer: pl.Trainer) -> bool:
    """Whether the epoch that ends is the run's last."""
    return trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
