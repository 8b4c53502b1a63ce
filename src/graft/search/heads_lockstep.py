"""One stack of heads over the epochs: the batches that `train()` would draw, and a look at valid where one is due."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import CancelledError
from dataclasses import dataclass

import torch

from graft.data.loader import EpochOrder, Place
from graft.data.module import inverse_frequency
from graft.errors import ConfigError
from graft.search.heads_course import Course
from graft.search.heads_features import Features
from graft.search.heads_stack import Stack
from graft.search.trials import Point

VALID_ROWS = 1024  # photos of valid in one product


@dataclass(frozen=True)
class Lesson:
    """What all heads of a call learn from.

    Attributes:
        train: its features.
        valid: its features, of one view.
        num_classes: C.
        class_weights: [C], for trials with balance=loss.
        rungs: optimiser steps at which valid is looked at, beside the ends of epochs.
        device: cpu or cuda.
        dtype: of the arithmetic.
    """

    train: Features
    valid: Features
    num_classes: int
    class_weights: torch.Tensor | None
    rungs: Set[int]
    device: str
    dtype: torch.dtype

    def head_bytes(self, hidden: int, batch_size: int) -> int:
        """Memory of one head: weights, their gradients and Adam's two moments, and its activations."""
        width, classes = self.train.width, self.num_classes
        weights = (width + 1) * hidden + (hidden + 1) * classes
        activations = max(batch_size, VALID_ROWS) * (2 * hidden + 4 * classes)
        return (4 * weights + activations) * self.dtype.itemsize


class Lockstep:
    """Heads that take their steps together: same batch size, order, and width of the hidden layer.

    Args:
        courses: of the heads; theirs are the points that `advance` finds.
        lesson: what they learn from.
        cancelled: when set, `advance` gives up.

    Raises:
        ConfigError: a trial cannot be trained.
    """

    def __init__(self, courses: Sequence[Course], lesson: Lesson, cancelled: threading.Event) -> None:
        self.courses, self.lesson, self.cancelled = list(courses), lesson, cancelled
        first = courses[0].trial
        if any(course.trial.max_steps == 0 for course in courses):
            raise ConfigError("trainer.max_steps=0: a trial without a step says nothing; accepted is at least 1, or -1")
        # As ImageData has it.
        weights = None
        if first.balance == "sampler":
            labels = lesson.train.labels.cpu().numpy()
            weights = inverse_frequency(labels, lesson.num_classes)[labels]
        self.order = EpochOrder(len(lesson.train), first.batch_size, seed=first.seed, shuffle=True, weights=weights)
        self.stack = Stack(
            [course.trial for course in courses],
            width=lesson.train.width,
            num_classes=lesson.num_classes,
            class_weights=lesson.class_weights,
            steps_per_epoch=len(self.order),
            device=lesson.device,
            dtype=lesson.dtype,
        )
        self.step = 0
        self.looked: list[tuple[Course, Point]] = []
        self.first_losses: list[float] = []
        self._batches = self._all_batches()
        self._losses = torch.zeros(len(courses), device=lesson.device, dtype=lesson.dtype)

    def advance(self) -> None:
        """Train up to the next look at valid, and look: `looked` are the heads that it was for, with their points.

        Raises:
            CancelledError: `cancelled` was set.
        """
        due: list[bool] = []
        while not any(due):
            if self.cancelled.is_set():
                raise CancelledError
            self._take_step(next(self._batches))
            rung = self.step in self.lesson.rungs
            due = [rung or course.ends_at(self.step, len(self.order)) for course in self.courses]
        pairs = zip(self.courses, self._points(), strict=True)
        self.looked = [pair for pair, mine in zip(pairs, due, strict=True) if mine]

    def drop_ended(self) -> None:
        """Free the slots of heads that have ended."""
        slots = [slot for slot, course in enumerate(self.courses) if course.state == "running"]
        if len(slots) < len(self.courses):
            self.courses = [self.courses[slot] for slot in slots]
            self.first_losses = [self.first_losses[slot] for slot in slots]
            self._losses = self._losses[slots]
            self.stack.keep(slots)

    def first_loss(self, course: Course) -> float:
        """Training loss of a head's first step."""
        return self.first_losses[self.courses.index(course)]

    def weights(self, course: Course) -> dict[str, torch.Tensor]:
        """A copy of a head, as the state of `build_head`'s module."""
        return self.stack.weights(self.courses.index(course))

    def _all_batches(self) -> Iterator[list[Place]]:
        for epoch in itertools.count():
            self.order.set_epoch(epoch)
            yield from self.order

    def _take_step(self, places: list[Place]) -> None:
        index = torch.tensor([place for _, place in places])
        losses = self.stack.step(*self.lesson.train.batch(places[0][0], index))
        if not self.step:
            self.first_losses = losses.tolist()
        if self.step % len(self.order) == 0:
            self._losses.zero_()
        self._losses += losses
        self.step += 1

    def _points(self) -> list[Point]:
        """All heads as they are now."""
        epoch, into_epoch = divmod(self.step, len(self.order))
        trained = self._losses / (into_epoch or len(self.order))
        count = len(self.lesson.valid)
        loss, right = torch.zeros_like(self._losses), torch.zeros_like(self._losses)
        for at in range(0, count, VALID_ROWS):
            batch = self.lesson.valid.batch(0, torch.arange(at, min(at + VALID_ROWS, count)))
            for total, part in zip((loss, right), self.stack.evaluate(*batch), strict=True):
                total += part
        figures = zip(trained.tolist(), (loss / count).tolist(), (right / count).tolist(), strict=True)
        return [
            Point(self.step, epoch, course.ends_at(self.step, len(self.order)), *figure)
            for course, figure in zip(self.courses, figures, strict=True)
        ]
