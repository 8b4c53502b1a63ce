"""Many heads on one pass: the trials of a search on cached features, trained side by side.

A head on cached features is so small that most of an ordinary fit is not arithmetic: loaders, hooks, loggers,
checkpoints. Here the heads of trials that see the same batches stand in one set of tensors (`heads_stack`), take
their steps together (`heads_lockstep`), and are watched one by one (`heads_course`). Initialisation, order, loss,
optimiser and schedule are those of `train()`, by the same functions, and what comes out is equal to it.

On a CPU every core trains stacks of its own, with one thread each: threads that share a product of 3 ms wait for
each other longer than they work, above all where other programs run. A result then depends neither on the other
trials of a call nor on the number of cores, to the last bit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial

import torch

from graft.environment import available_cores
from graft.search.heads_course import Course, Decision, HeadResult, HeadTrial, Progress, Report
from graft.search.heads_features import Features, free_bytes
from graft.search.heads_lockstep import Lesson, Lockstep
from graft.search.trials import Point

__all__ = ["Decision", "HeadResult", "HeadTrial", "Progress", "Report", "train_heads"]

# Heads in a stack on a CPU. A third gains nothing: the calls are shared by then, and the caches are full.
WIDEST_ON_CPU = 2


def train_heads(
    trials: Sequence[HeadTrial],
    train: Features,
    valid: Features,
    *,
    num_classes: int,
    report: Report,
    class_weights: Sequence[float] | None = None,
    rungs: Iterable[int] = (),
    memory_bytes: float | None = None,
    keep_weights: bool = False,
) -> list[HeadResult]:
    """Train heads on cached features as `train()` would train each; the results in the order of `trials`.

    As many are trained at a time as memory allows, the others after them. A head that diverges, fails or is
    pruned leaves at once and changes nothing for the others.

    Args:
        trials: what to train.
        train: features of the training photos, of one or more views; heads train where these are, in their dtype.
        valid: features of the validation photos, of one view, likewise.
        num_classes: C.
        report: told of every head at every rung and end of an epoch, and last of its end; the answer "prune"
            stops a running head. It is called from several threads, but never from two at once.
        class_weights: weight of each class, [C], as `Classifier` takes them; for trials with balance=loss.
        rungs: optimiser steps at which valid is looked at, beside the ends of epochs.
        memory_bytes: what heads may take; three quarters of what is free if not given.
        keep_weights: whether results hold the weights of the best epoch.

    Raises:
        Exception: what `report` raised; the training is then given up.
    """
    device, dtype = train.device, train.dtype
    weights = None if class_weights is None else torch.tensor(class_weights, device=device, dtype=dtype)
    lesson = Lesson(train, valid, num_classes, weights, frozenset(rungs), device, dtype)
    left = 0.75 * free_bytes(device) if memory_bytes is None else memory_bytes
    courses = [Course(trial) for trial in trials]
    workers = available_cores() if device == "cpu" else 1
    with _one_torch_thread_each(device):
        Training(lesson, report, keep_weights, workers).run(courses, left)
    return [course.result for course in courses]


class Training:
    """Trains stacks of heads, one in each worker, and reports of every head.

    Args:
        lesson: what heads learn from.
        report: see `train_heads`.
        keep_weights: see `train_heads`.
        workers: threads.
    """

    def __init__(self, lesson: Lesson, report: Report, keep_weights: bool, workers: int) -> None:
        self.lesson, self.report, self.keep_weights, self.workers = lesson, report, keep_weights, workers
        # Also held while heads are built: `build_head` seeds torch's one global generator and puts it back.
        self._alone = threading.Lock()
        self._cancelled = threading.Event()

    def run(self, courses: Sequence[Course], memory_bytes: float) -> None:
        """Train all heads to their ends; what a worker's heads may take is its part of `memory_bytes`."""
        fitting = [course for course in courses if self._fits(course, memory_bytes)]
        if not fitting:
            return
        largest = max(self.lesson.head_bytes(course.trial.hidden, course.trial.batch_size) for course in fitting)
        self.workers = min(self.workers, int(memory_bytes // largest), len(fitting))
        stacks = portions(fitting, self.lesson, memory_bytes, self.workers)
        # Units that ReLU has shut for good leave Adam's moments at the smallest denormal numbers for ever, with which
        # a step of a 2048-512-120 head takes 14 ms instead of 0.6. Flushed to zero, they cost nothing.
        flush = partial(torch.set_flush_denormal, True)
        with ThreadPoolExecutor(self.workers, "heads", initializer=flush) as pool:
            futures = [pool.submit(self._train, stack) for stack in stacks]
            try:
                for future in as_completed(futures):
                    future.result()
            finally:
                self._cancelled.set()  # an exception of `report`, or Ctrl-C: the others stop after their batch

    def _fits(self, course: Course, memory_bytes: float) -> bool:
        trial = course.trial
        needed = self.lesson.head_bytes(trial.hidden, trial.batch_size)
        if needed > memory_bytes:
            reason = f"model.hidden={trial.hidden}, data.batch_size={trial.batch_size}: the head takes "
            course.end("failed", f"{reason}{needed / 1e9:.3g} GB, and {max(memory_bytes, 0) / 1e9:.3g} GB are free")
            self._tell(course)
        return needed <= memory_bytes

    def _train(self, courses: Sequence[Course]) -> None:
        """Train one stack. If it fails, its heads start again one by one, and only those fail that fail alone."""
        looks = self._looks(courses)
        while True:
            try:
                lockstep = next(looks, None)
            except CancelledError:
                raise
            except Exception as error:  # any: one head's failure is not the others'
                return self._after_failure(courses, error)
            if lockstep is None:
                return None
            for course, point in lockstep.looked:
                self._judge(lockstep, course, point)

    def _looks(self, courses: Sequence[Course]) -> Iterator[Lockstep]:
        """The heads of a stack each time that valid was looked at."""
        if self._cancelled.is_set():
            return
        started = time.perf_counter()
        with self._alone:
            lockstep = Lockstep(courses, self.lesson, self._cancelled)
        while lockstep.courses:
            lockstep.advance()
            now = time.perf_counter()
            for course in lockstep.courses:
                course.seconds += (now - started) / len(lockstep.courses) / self.workers
            started = now
            yield lockstep
            lockstep.drop_ended()

    def _judge(self, lockstep: Lockstep, course: Course, point: Point) -> None:
        """Take the point in, report of it, and end the head where it or the answer says so."""
        better = course.add(point, lockstep.first_loss(course))
        if better and self.keep_weights:
            course.weights = lockstep.weights(course)
        if self._tell(course) == "prune" and course.state == "running":
            course.end("pruned", f"stopped at step {point.step}, with valid/loss {point.valid_loss:.4g}")
            self._tell(course)

    def _after_failure(self, courses: Sequence[Course], error: Exception) -> None:
        for course in courses:
            if course.state != "running":
                continue
            if len(courses) == 1:
                course.end("failed", f"{type(error).__name__}: {error}".splitlines()[0])
                self._tell(course)
            else:
                course.start_again()
                self._train([course])

    def _tell(self, course: Course) -> Decision:
        with self._alone:
            return self.report(course.progress)


def portions(courses: Sequence[Course], lesson: Lesson, memory_bytes: float, workers: int) -> list[list[Course]]:
    """Stacks of heads that see the same batches and fit into a worker's part of the memory, the longest first."""
    groups: dict[Hashable, list[Course]] = {}
    for course in courses:
        trial = course.trial
        key = trial.batch_size, trial.hidden, trial.seed, trial.balance == "sampler"
        groups.setdefault(key, []).append(course)
    stacks = []
    for group in groups.values():
        trial = group[0].trial
        fitting = int(memory_bytes / workers // lesson.head_bytes(trial.hidden, trial.batch_size))
        count = max(1, min(widest(len(courses), lesson.device, workers), fitting))
        group = sorted(group, key=lambda course: course.trial.max_epochs)
        stacks += [group[at : at + count] for at in range(0, len(group), count)]
    return sorted(stacks, key=_work, reverse=True)


def widest(count: int, device: str, workers: int) -> int:
    """Heads in a stack at most, of `count` in all.

    On a CPU a few fill one, and fewer where there would not be several stacks for each worker: the last ones to
    end should not leave the other cores idle for long.
    """
    return count if device != "cpu" else max(1, min(WIDEST_ON_CPU, count // (4 * workers)))


def _work(stack: Sequence[Course]) -> float:
    # In epochs of one head with large batches. Adam takes as long as the products of 24 photos.
    return sum(course.trial.max_epochs * (1 + 24 / course.trial.batch_size) for course in stack)


@contextmanager
def _one_torch_thread_each(device: str) -> Iterator[None]:
    """Threads that start in this block compute alone, on a CPU."""
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
