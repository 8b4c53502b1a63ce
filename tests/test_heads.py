"""Heads trained together against Lightning's own fits of the same trials, and against each other."""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from graft.callbacks import EarlyStopping, StopAfter
from graft.classifier import Classifier
from graft.data.folder import Split
from graft.data.module import ImageData, inverse_frequency
from graft.features.cache import Table
from graft.features.extract import Extracted
from graft.features.source import FeatureSource
from graft.fit import fit
from graft.inputs import InputSpec
from graft.search import heads
from graft.search.heads import Decision, HeadResult, HeadTrial, Progress, train_heads
from graft.search.heads_course import Course
from graft.search.heads_features import Features
from graft.search.heads_stack import Stack
from graft.search.pruning import divergence
from graft.search.trials import Point
from graft.stores import LocalStore

WIDTH, CLASSES = 512, 4  # of squeezenet, whose Classifier is the quickest to build
COUNTS = [70, 50, 30, 17]  # photos per class; 167 is no multiple of any batch size below


def source(counts: list[int], *, views: int, seed: int) -> FeatureSource:
    """Features that tell the classes apart, but not at a glance."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = np.random.default_rng(99).normal(size=(len(counts), WIDTH))
    looks = []
    for _ in range(views):
        records = np.zeros(len(labels), [("key", "S16"), ("status", "u1"), ("feature", "f4", (WIDTH,))])
        records["key"] = [str(number).encode() for number in range(len(labels))]
        records["feature"] = 0.12 * centres[labels] + rng.normal(size=(len(labels), WIDTH))
        looks.append(Extracted(Table([records], WIDTH), np.arange(len(labels)), records["key"], 0, len(labels)))
    return FeatureSource(looks, labels)


TRAIN, VALID = source(COUNTS, views=2, seed=0), source([20, 20, 20, 20], views=1, seed=1)
BASE = HeadTrial(
    number=0,
    lr=1e-3,
    weight_decay=0.0,
    batch_size=32,
    max_epochs=20,
    max_steps=50,
    patience=None,
    seed=0,
    hidden=24,
    algorithm="adam",
    schedule="constant",
    label_smoothing=0.0,
    clip_norm=None,
    balance="none",
)
# Different learning rates, batch sizes, orders and losses; some share a stack, and one has it for itself.
TRIALS = [
    BASE,
    dataclasses.replace(BASE, number=1, lr=1e-2, weight_decay=1e-2, label_smoothing=0.1),
    dataclasses.replace(
        BASE, number=2, lr=3e-3, algorithm="adamw", weight_decay=0.1, schedule="cosine", clip_norm=0.05
    ),
    dataclasses.replace(BASE, number=3, lr=5e-3, balance="loss", label_smoothing=0.2, seed=11),
    dataclasses.replace(BASE, number=4, lr=2e-3, balance="sampler", seed=7),
    dataclasses.replace(BASE, number=5, lr=2e-2, batch_size=8, seed=3),
    dataclasses.replace(BASE, number=6, batch_size=64, hidden=40),
    dataclasses.replace(BASE, number=7, lr=1e6),
]


def go_on(progress: Progress) -> Decision:
    return "continue"


def together(
    trials: list[HeadTrial],
    *,
    report: Callable[[Progress], Decision] = go_on,
    dtype: torch.dtype = torch.float32,
    rungs: tuple[int, ...] = (),
    memory_bytes: float | None = 1e9,
) -> dict[int, HeadResult]:
    results = train_heads(
        trials,
        Features(TRAIN, device="cpu", dtype=dtype),
        Features(VALID, device="cpu", dtype=dtype),
        num_classes=CLASSES,
        report=report,
        class_weights=class_weights().tolist(),
        rungs=rungs,
        memory_bytes=memory_bytes,
        keep_weights=True,
    )
    assert [result.number for result in results] == [trial.number for trial in trials]
    return {result.number: result for result in results}


def class_weights() -> NDArray[np.float64]:
    return inverse_frequency(TRAIN.labels.numpy(), CLASSES)


@pytest.fixture
def wide_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All heads that see the same batches in one stack, as on a GPU."""
    monkeypatch.setattr(heads, "widest", lambda count, device, workers: count)


def parts(trial: HeadTrial) -> tuple[Classifier, ImageData]:
    """What an ordinary run of a trial is made of."""
    names = tuple("abcd")
    splits = [
        Split(name, LocalStore(Path()), name, tuple(f"{names[label]}/{n}" for n, label in enumerate(labels)), names)
        for name, labels in (("train", TRAIN.labels.tolist()), ("valid", VALID.labels.tolist()))
    ]
    data = ImageData(
        *splits,
        spec=InputSpec(224, 224, "crop", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        batch_size=trial.batch_size,
        balance=trial.balance,
        seed=trial.seed,
        train_source=TRAIN,
        valid_source=VALID,
    )
    classifier = Classifier(
        "squeezenet1_1",
        CLASSES,
        hidden=trial.hidden,
        algorithm=trial.algorithm,
        lr=trial.lr,
        weight_decay=trial.weight_decay,
        label_smoothing=trial.label_smoothing,
        schedule=trial.schedule,
        clip_norm=trial.clip_norm,
        class_weights=class_weights().tolist() if trial.balance == "loss" else None,
        seed=trial.seed,
    )
    return classifier, data


class Watch(pl.Callback):
    """valid/loss, valid/accuracy and the head's weights after every validation."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, dict[str, torch.Tensor]]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        head = {name: value.clone() for name, value in pl_module.head.state_dict().items()}
        loss, accuracy = (float(trainer.callback_metrics[f"valid/{name}"]) for name in ("loss", "accuracy"))
        self.seen.append((loss, accuracy, head))


def alone(trial: HeadTrial) -> Watch:
    """Lightning's fit of one trial in float64."""
    classifier, data = parts(trial)
    watch = Watch()
    stops = [] if trial.patience is None else [EarlyStopping("valid/loss", patience=trial.patience)]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=trial.max_epochs,
        precision="64-true",
        callbacks=[watch, StopAfter(trial.max_steps), *stops] if trial.max_steps >= 0 else [watch, *stops],
        logger=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(classifier, datamodule=data)
    return watch


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)


QUIET = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (".*does not have many workers", r"Found \d+ module", ".*smaller than the logging interval")
]


def with_lightning(test: Callable[..., None]) -> Callable[..., None]:
    """A test that runs Lightning, with the filters of `quiet_lightning`."""
    for mark in QUIET:
        test = mark(test)
    return test


@with_lightning
@pytest.mark.usefixtures("wide_stacks")
def test_heads_trained_together_equal_separate_fits_by_lightning() -> None:
    results = together(TRIALS, dtype=torch.float64)
    for trial in TRIALS[:-1]:
        watch, result = alone(trial), results[trial.number]
        assert (result.state, result.curve[-1].step) == ("ok", 50)
        ends = [(point.valid_loss, point.valid_accuracy) for point in result.curve]
        np.testing.assert_allclose(ends, [seen[:2] for seen in watch.seen], atol=1e-5, rtol=0)
        assert ends[0][0] != pytest.approx(ends[-1][0], abs=1e-2)  # it moved
        best = min(watch.seen, key=lambda seen: seen[0])
        assert result.best is not None
        assert result.best.valid_loss == pytest.approx(best[0], abs=1e-5)
        assert result.weights is not None
        for name, weights in best[2].items():
            np.testing.assert_allclose(result.weights[name], weights, atol=1e-5, rtol=0)


@with_lightning
def test_the_value_is_what_the_ordinary_fit_in_fp32_keeps_with_patience(tmp_path: Path) -> None:
    trial = dataclasses.replace(BASE, lr=2e-2, batch_size=64, max_epochs=30, max_steps=-1, patience=2)
    result = together([trial])[0]
    classifier, data = parts(trial)
    torch.manual_seed(0)
    kept = fit(
        classifier,
        data,
        checkpoints=tmp_path / "checkpoints",
        logs=tmp_path / "logs",
        device="cpu",
        max_epochs=trial.max_epochs,
        max_steps=trial.max_steps,
        patience=trial.patience,
        precision="fp32",
        checkpoint_minutes=5.0,
        progress=False,
    )
    assert result.best is not None
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert result.curve[-1].step == last["global_step"] == 3 * (result.best.epoch + 2) < 90  # patience ended both
    inputs, labels = VALID.__getitems__([(0, index) for index in range(80)])
    with torch.inference_mode():
        kept_loss = torch.nn.functional.cross_entropy(kept.logits(inputs), labels).item()
    assert result.best.valid_loss == pytest.approx(kept_loss, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["cores", "one stack"])
def test_a_diverging_head_changes_no_other_by_a_bit(
    request: pytest.FixtureRequest, layout: str, dtype: torch.dtype
) -> None:
    if layout == "one stack":
        request.getfixturevalue("wide_stacks")
    bad = together(TRIALS, dtype=dtype)
    tame = together([*TRIALS[:-1], dataclasses.replace(TRIALS[-1], lr=1e-4)], dtype=dtype)
    assert (bad[7].state, tame[7].state) == ("diverged", "ok")
    without = together(TRIALS[:-1], dtype=dtype)
    for number in range(7):
        assert same(bad[number], tame[number])
        assert same(bad[number], without[number])


@pytest.mark.usefixtures("wide_stacks")
def test_nan_stays_in_its_head() -> None:
    poisoned = dataclasses.replace(BASE, number=8, lr=math.inf)
    alone_, beside = together(TRIALS[:4]), together([poisoned, *TRIALS[:4]])
    assert all(same(alone_[number], beside[number]) for number in range(4))
    assert (beside[8].state, beside[8].reason) == ("diverged", "train/loss was nan at step 6")


def test_a_result_depends_on_no_other_trial_of_the_call(request: pytest.FixtureRequest) -> None:
    by_itself = {trial.number: together([trial])[trial.number] for trial in TRIALS}
    on_cores = together(TRIALS)
    request.getfixturevalue("wide_stacks")
    in_one = together(list(reversed(TRIALS)))
    for number, result in by_itself.items():
        assert same(result, on_cores[number])
        assert same(result, in_one[number])


def same(one: HeadResult, other: HeadResult) -> bool:
    """Whether two results agree to the last bit, but for the time they took."""
    if one.weights is None or other.weights is None:
        return (one.weights, one.curve) == (other.weights, other.curve)
    return (one.state, one.reason, one.best, one.curve) == (other.state, other.reason, other.best, other.curve) and all(
        torch.equal(value, other.weights[name]) for name, value in one.weights.items()
    )


def test_every_head_is_reported_at_rungs_and_epoch_ends_and_last_of_its_end() -> None:
    reports: dict[int, list[Progress]] = {trial.number: [] for trial in TRIALS[:6]}
    busy = threading.Lock()

    def report(progress: Progress) -> Decision:
        assert busy.acquire(blocking=False), "called by two threads at once"
        reports[progress.number].append(progress)
        busy.release()
        return "continue"

    results = together(TRIALS[:6], report=report, rungs=(4, 6, 10))
    for number, seen in reports.items():
        steps_per_epoch = 21 if number == 5 else 6
        ends = {*range(steps_per_epoch, 50, steps_per_epoch), 50}
        expected = sorted({4, 6, 10} | ends)
        assert [progress.point.step for progress in seen if progress.point] == expected
        assert [progress.state for progress in seen] == ["running"] * (len(expected) - 1) + ["ok"]
        curve = results[number].curve
        assert curve == tuple(progress.point for progress in seen)
        assert {point.step for point in curve if point.ends_epoch} == ends
        assert results[number].best == min((p for p in curve if p.ends_epoch), key=lambda p: p.valid_loss)
        assert seen[-1].best == results[number].best


def test_rungs_change_nothing_but_the_curve() -> None:
    plain, looked_at = together(TRIALS), together(TRIALS, rungs=(1, 2, 3, 17))
    for number, result in plain.items():
        ends = tuple(point for point in looked_at[number].curve if point.ends_epoch)
        assert same(result, dataclasses.replace(looked_at[number], curve=ends))


@pytest.mark.parametrize("layout", ["cores", "one stack"])
def test_pruned_heads_leave_at_once_and_change_no_other_by_a_bit(request: pytest.FixtureRequest, layout: str) -> None:
    if layout == "one stack":
        request.getfixturevalue("wide_stacks")

    def report(progress: Progress) -> Decision:
        assert progress.point is not None
        return "prune" if (progress.number, progress.point.step) in {(0, 4), (2, 12)} else "continue"

    whole, pruned = together(TRIALS, rungs=(4,)), together(TRIALS, rungs=(4,), report=report)
    assert [pruned[number].state for number in range(8)] == [
        *["pruned", "ok", "pruned", "ok", "ok", "ok", "ok", "diverged"]
    ]
    assert [pruned[number].curve[-1].step for number in (0, 2)] == [4, 12]
    assert pruned[0].reason == f"stopped at step 4, with valid/loss {pruned[0].curve[-1].valid_loss:.4g}"
    assert pruned[0].best is None  # no epoch ended
    assert pruned[2].curve == whole[2].curve[: len(pruned[2].curve)]
    assert all(same(whole[number], pruned[number]) for number in (1, 3, 4, 5, 6, 7))


def test_whatever_a_head_raises_is_its_reason_and_what_a_report_raises_ends_the_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    init = Stack.__init__

    def raising(self: Any, trials: Any, **given: Any) -> None:
        if any(trial.number == 1 for trial in trials):
            raise LookupError("of a driver, say")
        init(self, trials, **given)

    good = together(TRIALS[:3])
    monkeypatch.setattr(Stack, "__init__", raising)
    mixed = together(TRIALS[:3])
    assert (mixed[1].state, mixed[1].reason) == ("failed", "LookupError: of a driver, say")
    assert all(same(good[number], mixed[number]) for number in (0, 2))

    def broken(progress: Progress) -> Decision:
        raise LookupError("of the study")

    with pytest.raises(LookupError, match="of the study"):
        together(TRIALS[:3], report=broken)


@pytest.mark.parametrize("layout", ["cores", "one stack"])
def test_a_head_that_fails_is_recorded_and_the_others_go_on(request: pytest.FixtureRequest, layout: str) -> None:
    if layout == "one stack":
        request.getfixturevalue("wide_stacks")
    ends: list[Progress] = []
    bad = [
        dataclasses.replace(BASE, number=10, algorithm="sgd"),
        dataclasses.replace(BASE, number=11, hidden=200_000),
        dataclasses.replace(BASE, number=12, lr=-1.0),
        dataclasses.replace(BASE, number=13, max_steps=0),
    ]

    def report(progress: Progress) -> Decision:
        ends.append(progress)
        return "continue"

    good, mixed = together(TRIALS[:4]), together([*bad, *TRIALS[:4]], report=report)
    assert all(same(good[number], mixed[number]) for number in range(4))
    assert {result.number: result.reason for result in mixed.values() if result.state == "failed"} == {
        10: "ConfigError: optim.algorithm=sgd: accepted: adam, adamw",
        11: "model.hidden=200000, data.batch_size=32: the head takes 3.29 GB, and 1 GB are free",
        12: "ValueError: Invalid learning rate: -1.0",
        13: "ConfigError: trainer.max_steps=0: a trial without a step says nothing; accepted is at least 1, or -1",
    }
    assert sorted(progress.number for progress in ends if progress.state == "failed") == [10, 11, 12, 13]


@pytest.mark.usefixtures("wide_stacks")
def test_heads_start_again_one_by_one_when_their_stack_fails_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, step, calls = together(TRIALS[:3]), Stack.step, 0

    def short_of_memory(self: Stack, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += len(self) > 1
        if calls == 20 and len(self) > 1:
            raise torch.OutOfMemoryError("not enough memory")
        return step(self, inputs, labels)

    monkeypatch.setattr(Stack, "step", short_of_memory)
    assert all(same(expected[number], result) for number, result in together(TRIALS[:3]).items())
    assert calls == 20


def test_less_memory_means_smaller_portions_and_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[list[int]] = []
    portions = heads.portions

    def noted(*arguments: Any) -> list[list[Course]]:
        stacks = portions(*arguments)
        sizes.append(sorted(len(stack) for stack in stacks))
        return stacks

    monkeypatch.setattr(heads, "portions", noted)
    monkeypatch.setattr(heads, "widest", lambda count, device, workers: count)
    monkeypatch.setattr(heads, "available_cores", lambda: 2)
    plenty = together(TRIALS[:4])
    # A head takes 4 bytes of 4 times 12,412 weights and of 1024 times 64 activations.
    little = together(TRIALS[:4], memory_bytes=1_000_000)
    least = together(TRIALS[:4], memory_bytes=461_000)
    assert sizes == [[1, 3], [1, 1, 1, 1], [1, 1, 1, 1]]  # one of them sees other batches
    assert all(same(plenty[number], other[number]) for other in (little, least) for number in range(4))


@pytest.mark.parametrize("most_bytes", [0, 1e9])
def test_features_show_the_views_that_the_source_shows(most_bytes: float) -> None:
    features = Features(TRAIN, device="cpu", dtype=torch.float64, most_bytes=most_bytes)
    assert features.in_memory == bool(most_bytes)
    for epoch in range(3):
        inputs, labels = features.batch(epoch, torch.tensor([5, 166, 2]))
        expected, expected_labels = TRAIN.__getitems__([(epoch, 5), (epoch, 166), (epoch, 2)])
        assert torch.equal(inputs, expected.double())
        assert torch.equal(labels, expected_labels)
    assert not torch.equal(features.batch(0, torch.tensor([5]))[0], features.batch(1, torch.tensor([5]))[0])


def test_what_report_raises_ends_the_training_and_reaches_the_caller() -> None:
    class Broken(Exception):
        pass

    def report(progress: Progress) -> Decision:
        if progress.number == 5:
            raise Broken
        return "continue"

    endless = [dataclasses.replace(trial, max_epochs=10**6, max_steps=-1) for trial in TRIALS[:6]]
    with pytest.raises(Broken):
        together(endless, report=report)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("heads")]


def test_workers_compute_on_one_thread_and_flush_denormals_and_leave_the_caller_as_it_was() -> None:
    seen = set()

    def smallest_survives() -> bool:
        return bool((torch.full((64,), 1e-39) * 1.0).count_nonzero())

    def report(progress: Progress) -> Decision:
        seen.add((torch.get_num_threads(), smallest_survives()))
        return "continue"

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together(TRIALS[:2], report=report)
        assert seen == {(1, False)}
        assert (torch.get_num_threads(), smallest_survives()) == (2, True)
    finally:
        torch.set_num_threads(before)


def test_the_seconds_of_all_trials_add_up_to_about_the_time_it_took() -> None:
    started = time.perf_counter()
    results = together(TRIALS)
    elapsed = time.perf_counter() - started
    assert 0.3 * elapsed < sum(result.seconds for result in results.values()) <= elapsed


def point(step: int, train_loss: float, valid_loss: float = 9.0, *, ends_epoch: bool = True) -> Point:
    return Point(step, step // 10, ends_epoch, train_loss, valid_loss, 0.5)


@pytest.mark.parametrize(
    ("curve", "finished", "reason"),
    [
        ([point(10, 6.1), point(20, 5.9)], False, ""),  # thrown off, and back
        ([point(10, 5.9), point(20, 6.1)], False, ""),
        ([point(10, 6.1), point(15, 6.2, ends_epoch=False)], False, ""),  # a rung is no epoch end
        ([point(10, 1.0, 50.0), point(20, 1.0, 50.0)], True, ""),  # overfitting is no divergence
        (
            [point(10, 6.1), point(15, 1.0, ends_epoch=False), point(20, 7.0)],
            False,
            "loss stayed above 3 times its first value, 2: 6.1, then 7",
        ),
        ([point(10, 6.1)], False, ""),
        ([point(10, 6.1)], True, "loss stayed above 3 times its first value, 2: 6.1"),
        ([point(5, math.nan, ends_epoch=False)], False, "train/loss was nan at step 5"),
        ([point(10, 1.0), point(20, 1.0, math.inf)], False, "valid/loss was inf at step 20"),
    ],
)
def test_a_head_has_diverged_when_its_loss_is_not_finite_or_stays_above_three_times_its_first(
    curve: list[Point], finished: bool, reason: str
) -> None:
    assert divergence(2.0, curve, finished=finished) == reason


def test_patience_counts_epochs_since_the_best() -> None:
    course = Course(dataclasses.replace(BASE, patience=2, max_steps=-1, max_epochs=9))
    for step, loss in ((10, 3.0), (15, 0.1), (20, 4.0), (30, 2.0), (40, 2.0), (50, 2.5)):
        assert course.state == "running"
        course.add(point(step, 1.0, loss, ends_epoch=step % 10 == 0), first_loss=2.0)
    assert (course.state, course.best) == ("ok", point(30, 1.0, 2.0))
