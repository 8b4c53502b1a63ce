"""The probe: a Lightning callback that records a training without slowing it.

A step appends tensors to lists and no more: nothing is computed from them, written, or waited for (a GPU goes on)
until the next flush. Gradients, weights and outputs are looked at in one of `statistics_interval` steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch

from graft.debugger.buffers import Buffers, told_by
from graft.debugger.records import EVAL, TRAIN, Facts, RecordWriter
from graft.debugger.statistics import LayerStatistics

FLUSH_S = 5.0  # between two flushes; after 500 s a hundredth of the time so far, so that parts stay few
MOST_STEPS = 10_000  # that wait for a flush: their labels are in memory
ANSWERS = 2048  # photos of one evaluation whose answers are kept
ANSWERS_INTERVAL = 10  # training steps from one whose answers are kept to the next

Batch = tuple[torch.Tensor, torch.Tensor]


class LossHook(Protocol):
    """Another recorder of the losses, such as smdebug's."""

    def start(self, classifier: pl.LightningModule, steps: dict[str, int]) -> None:
        """Before the first step of this process; `steps` were taken before it, by mode."""

    def record(self, mode: str, step: int, loss: torch.Tensor) -> None:
        """A scalar, at every step."""

    def close(self) -> None:
        """After the last step."""


class Probe(pl.Callback):
    """Records losses, layers, labels and answers, and asks to stop where it is told that something is wrong.

    Args:
        run_dir: of the run.
        facts: of the run, for the rules.
        train_interval: training steps from one recorded loss to the next.
        eval_interval: validation batches likewise, counted anew in each evaluation: all of them see the same photos.
        statistics_interval: training steps from one look at the layers to the next.
        writes: false in a process that is not the leader of its run.
        stop: called after a flush with the steps taken; the fit ends, in good order, where it says so. None: never.
        beside: records the losses too.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        run_dir: Path,
        facts: Facts,
        *,
        train_interval: int = 1,
        eval_interval: int = 1,
        statistics_interval: int = 50,
        writes: bool = True,
        stop: Callable[[int], bool] | None = None,
        beside: LossHook | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run_dir, self.facts = run_dir, facts
        self.train_interval, self.eval_interval = train_interval, eval_interval
        self.statistics_interval = statistics_interval
        self.writes, self.stop, self.beside, self.clock = writes, stop, beside, clock
        self.steps = {TRAIN: 0, EVAL: 0}
        self._looking = False
        self._rate = float("nan")
        self._answered = 0  # photos of this evaluation
        self._buffers = Buffers()
        self._writer: RecordWriter | None = None

    def state_dict(self) -> dict[str, int]:
        """Batches of each mode so far; Lightning keeps them in every checkpoint."""
        return dict(self.steps)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on counting."""
        self.steps = dict(state)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a session where the checkpoint left off."""
        if not self.writes:
            return
        self._statistics = LayerStatistics(pl_module, pl_module.head)  # type: ignore[arg-type]
        self._writer = RecordWriter(self.run_dir, self.facts, self.steps)
        self._started = self._flushed = self.clock()
        if self.beside:
            self.beside.start(pl_module, dict(self.steps))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, index: int
    ) -> None:
        """Look at the layers in this step, or at the answers, if it is one of those."""
        if not self.writes:
            return
        step = self.steps[TRAIN]
        if is_looked_at(step, self.statistics_interval):
            self._looking = True
            self._statistics.watch()
        if step % ANSWERS_INTERVAL == 0:
            self._statistics.watch_answers()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Gradients are there, and the weights and the learning rate are still those of this step."""
        self._rate = optimizer.param_groups[0]["lr"]
        if self._looking:
            self._buffers.layers.append((self.steps[TRAIN], self._statistics.rows()))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the loss and the labels of the step."""
        if not self.writes:
            return
        step, labels = self.steps[TRAIN], batch[1]
        if step % self.train_interval == 0:
            self._buffers.losses.append((TRAIN, step, step, outputs["loss"], len(labels), self._rate))
            self._buffers.labels.append(labels)
        if self._looking:
            self._looking = False
            self._buffers.relus += [(step, name, *told) for name, told in self._statistics.dead_relus().items()]
        if step % ANSWERS_INTERVAL == 0 and self._statistics.logits is not None:
            self._keep_answers(TRAIN, step, step, self._statistics.logits, labels)
        self._statistics.release()
        if self.beside:
            self.beside.record(TRAIN, step, outputs["loss"])
        self.steps[TRAIN] = step + 1
        if self.clock() >= self._next_flush() or len(self._buffers.losses) >= MOST_STEPS:
            self.flush()
            if self.stop and trainer.world_size == 1:
                trainer.should_stop = trainer.should_stop or self.stop(step + 1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Another evaluation."""
        self._answered = 0

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the loss of a batch, and what the model answered."""
        if not self.writes or not outputs:
            return
        step, taken, labels = self.steps[EVAL], self.steps[TRAIN], batch[1]
        loss = outputs["losses"].mean()
        if batch_idx % self.eval_interval == 0:
            self._buffers.losses.append((EVAL, step, taken, loss, len(labels), float("nan")))
            self._keep_answers(EVAL, step, taken, outputs["logits"], labels)
        if self.beside:
            self.beside.record(EVAL, step, loss)
        self.steps[EVAL] = step + 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge what is known by now; all processes stop together."""
        if self.stop is None:
            return
        self.flush()
        found = self.writes and self.stop(self.steps[TRAIN])
        if trainer.strategy.reduce_boolean_decision(found, all=False):
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave nothing in memory."""
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Likewise."""
        self._end()

    def flush(self) -> None:
        """Write what was recorded since the last flush."""
        if self._writer is None:
            return
        buffers, self._buffers = self._buffers, Buffers()
        for table, columns in buffers.tables(self.steps[TRAIN] - 1, self.facts.num_classes):
            self._writer.write(table, columns)
        self._flushed = self.clock()

    def _next_flush(self) -> float:
        return self._flushed + max(FLUSH_S, 0.01 * (self._flushed - self._started))

    def _keep_answers(self, mode: str, step: int, taken: int, logits: torch.Tensor, labels: torch.Tensor) -> None:
        if mode == EVAL:
            if self._answered >= ANSWERS:
                return
            self._answered += len(labels)
        self._buffers.answers.append((mode, step, taken, *told_by(logits.float(), labels)))

    def _end(self) -> None:
        if self._writer is None:
            return
        self._looking = False
        self._statistics.release()
        self.flush()
        if self.beside:
            self.beside.close()
        self._writer = None


def is_looked_at(step: int, interval: int) -> bool:
    """Whether layers are looked at in a step: every `interval`, and at 1, 2, 4, .. of the first, where most moves."""
    return step % interval == 0 or (step < interval and step & (step - 1) == 0)
