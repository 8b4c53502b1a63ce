"""Fitting: a run that was stopped at any moment goes on as if it had not been, and says what it does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graft.callbacks
import graft.fit
from graft.classifier import Classifier
from graft.data.folder import Split
from graft.data.loader import Batch, Place
from graft.data.module import ImageData
from graft.errors import ConfigError, RunError
from graft.fit import fit, pick_device, quiet_lightning
from graft.inputs import InputSpec
from graft.stores import LocalStore
from tests.pictures import draw_folder
from tests.training import lasting, read_json, run, start, tiny, wait_for

EPOCHS, BATCHES, BATCH = 3, 4, 5
PHOTOS = BATCHES * BATCH - 2  # the last batch of an epoch is smaller


class Killed(BaseException):
    """Ends a fit as SIGKILL does: whatever is not on the disk by now is lost."""


class Recorder:
    """A source in memory that notes every place it was asked for and may end the process's life."""

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.inputs, self.labels = inputs, labels
        self.served: list[list[Place]] = []
        self.before: Callable[[int], None] = lambda count: None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, places: list[Place]) -> Batch:
        self.before(len(self.served))
        self.served.append(places)
        index = [index for _, index in places]
        return self.inputs[index], self.labels[index]


def vectors(n: int, seed: int) -> Recorder:
    """Features of three classes that overlap, float32 [n, 512]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centres = np.random.default_rng(9).normal(0, 0.1, (3, 512))
    return Recorder(torch.tensor(centres[labels] + rng.normal(0, 1, (n, 512))).float(), torch.tensor(labels))


def images(n: int, seed: int) -> Recorder:
    """Images of three classes, uint8 [n, 64, 64, 3]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    pixels = rng.integers(0, 120, (n, 64, 64, 3)) + 60 * np.eye(3)[labels][:, None, None, :]
    return Recorder(torch.tensor(pixels.astype(np.uint8)), torch.tensor(labels))


class Session:
    """One process's part of a fit: fresh objects over the same folder of checkpoints."""

    def __init__(
        self, folder: Path, make: Callable[[int, int], Recorder] = vectors, valid: int = 9, **classifier: Any
    ) -> None:
        self.folder = folder
        self.train, self.valid = make(PHOTOS, 1), make(valid, 2)
        known = {"hidden": 8, "lr": 0.01, "schedule": "cosine", "seed": 3, **classifier}
        self.classifier = Classifier("squeezenet1_1", 3, **known)
        split = Split("any", LocalStore(folder), "", tuple(f"{n % 3}/{n}" for n in range(PHOTOS)), ("0", "1", "2"))
        self.data = ImageData(
            split,
            split,
            spec=InputSpec(64, 64),
            batch_size=BATCH,
            seed=3,
            train_source=self.train,
            valid_source=self.valid,
        )

    def fit(self, **changes: Any) -> Classifier:
        known: dict[str, Any] = {
            "checkpoints": self.folder / "checkpoints",
            "logs": self.folder / "logs",
            "device": "cpu",
            "max_epochs": EPOCHS,
            "max_steps": -1,
            "patience": None,
            "precision": "fp32",
            "checkpoint_minutes": 1e-9,
            "progress": False,
        }
        quiet_lightning()
        return fit(self.classifier, self.data, **{**known, **changes})


def assert_ends_alike(found: Session, expected: Session) -> None:
    """best.ckpt and last.ckpt: weights, epoch and step, and of last.ckpt optimiser and schedule, to the last bit."""
    best = ("state_dict", "epoch", "global_step")
    for name, parts in (("best.ckpt", best), ("last.ckpt", (*best, "optimizer_states", "lr_schedulers"))):
        pair = [torch.load(s.folder / "checkpoints" / name, weights_only=True) for s in (found, expected)]
        for part in parts:
            ours, theirs = (flat(checkpoint[part]) for checkpoint in pair)
            assert ours.keys() == theirs.keys()
            different = [key for key in ours if not np.array_equal(ours[key], theirs[key])]
            assert not different, (name, part)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts and lists by their path."""
    if not isinstance(tree, dict | list):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {path: leaf for key, branch in items for path, leaf in flat(branch, f"{prefix}/{key}").items()}


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    theirs = expected.state_dict()
    different = [name for name, value in found.state_dict().items() if not torch.equal(value, theirs[name])]
    assert not different


def kill_at(batch: int) -> Callable[[int], None]:
    def before(count: int) -> None:
        if count == batch:
            raise Killed

    return before


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A fit that nothing interrupted; its classifier is the best epoch's."""
    session = Session(tmp_path_factory.mktemp("whole"))
    session.fit()
    return session


@pytest.mark.parametrize("batch", range(1, EPOCHS * BATCHES))
def test_killed_before_any_batch_it_goes_on_with_that_batch(whole: Session, tmp_path: Path, batch: int) -> None:
    first, second = Session(tmp_path), Session(tmp_path)
    first.train.before = kill_at(batch)
    with pytest.raises(Killed):
        first.fit()
    second.fit()
    assert first.train.served + second.train.served == whole.train.served
    assert_ends_alike(second, whole)


@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_killed_while_validating_it_validates_that_epoch(whole: Session, tmp_path: Path, epoch: int) -> None:
    first, second = Session(tmp_path), Session(tmp_path)
    first.valid.before = kill_at(epoch)
    with pytest.raises(Killed):
        first.fit()
    second.fit()
    assert first.train.served[:-1] + second.train.served == whole.train.served
    assert len(first.valid.served) + len(second.valid.served) == EPOCHS
    assert_ends_alike(second, whole)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, 6])
def test_dropout_of_a_resumed_fit_is_that_of_the_whole_one(tmp_path: Path, batch: int) -> None:
    many: dict[str, Any] = {"unfreeze": "all", "lr": 1e-3}
    whole, first, second = (Session(tmp_path / name, images, **many) for name in ("whole", "cut", "cut"))
    assert any(isinstance(part, nn.Dropout) and part.training for part in whole.classifier.modules())
    whole.fit(max_epochs=2)
    torch.manual_seed(1)  # another process's generator stands elsewhere
    first.train.before = kill_at(batch)
    with pytest.raises(Killed):
        first.fit(max_epochs=2)
    torch.manual_seed(2)
    second.fit(max_epochs=2)
    assert first.train.served + second.train.served == whole.train.served
    assert_ends_alike(second, whole)


def test_without_checkpoints_inside_an_epoch_it_begins_again(whole: Session, tmp_path: Path) -> None:
    first, second = Session(tmp_path), Session(tmp_path)
    first.train.before = kill_at(BATCHES + 2)
    with pytest.raises(Killed):
        first.fit(checkpoint_minutes=60)
    second.fit(checkpoint_minutes=60)
    assert second.train.served == whole.train.served[BATCHES:]
    assert_ends_alike(second, whole)


@pytest.mark.parametrize("batch", [2, 4, 7, 10])
def test_max_steps_counts_over_the_lives_of_a_fit(tmp_path: Path, batch: int) -> None:
    whole, first, second = Session(tmp_path / "whole"), Session(tmp_path / "cut"), Session(tmp_path / "cut")
    whole.fit(max_steps=11)
    assert len(whole.train.served) == 11
    assert len(whole.valid.served) == 3  # the third epoch is validated though it was not finished
    first.train.before = kill_at(batch)
    with pytest.raises(Killed):
        first.fit(max_steps=11)
    second.fit(max_steps=11)
    assert first.train.served + second.train.served == whole.train.served
    assert_ends_alike(second, whole)


def test_max_steps_reached_before_a_kill_is_not_exceeded(tmp_path: Path) -> None:
    first, second = Session(tmp_path), Session(tmp_path)
    expected = first.fit(max_steps=3)
    (tmp_path / "checkpoints" / "finished").unlink()
    found = second.fit(max_steps=3)
    assert second.train.served == []
    assert_same(found, expected)


def test_a_finished_fit_is_only_read_again(tmp_path: Path) -> None:
    first, second = Session(tmp_path), Session(tmp_path)
    expected = first.fit()
    found = second.fit()
    assert second.train.served == second.valid.served == []
    assert_same(found, expected)


def worsening(session: Session) -> None:
    """Validation labels that training leads away from, so that valid/loss rises from the first epoch on."""
    session.valid.labels = (session.train.labels[: len(session.valid)] + 1) % 3
    session.valid.inputs = session.train.inputs[: len(session.valid)]


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path) -> None:
    session, one = (Session(tmp_path / name, schedule="constant") for name in ("ten", "one"))
    worsening(session)
    worsening(one)
    best = session.fit(max_epochs=10, patience=2)
    assert len(session.train.served) == 3 * BATCHES
    assert_same(best, one.fit(max_epochs=1))


def test_early_stopping_decided_before_a_kill_does_not_train_on(tmp_path: Path) -> None:
    first, second = Session(tmp_path), Session(tmp_path)
    worsening(first)
    worsening(second)
    expected = first.fit(max_epochs=10, patience=2)
    (tmp_path / "checkpoints" / "finished").unlink()  # killed right after last.ckpt was written
    found = second.fit(max_epochs=10, patience=2)
    assert second.train.served == []
    assert_same(found, expected)


def test_patience_is_counted_over_the_lives_of_a_fit(tmp_path: Path) -> None:
    first, second = Session(tmp_path), Session(tmp_path)
    worsening(first)
    worsening(second)
    first.train.before = kill_at(2 * BATCHES + 1)
    with pytest.raises(Killed):
        first.fit(max_epochs=10, patience=2)
    second.fit(max_epochs=10, patience=2)
    assert len(first.train.served + second.train.served) == 3 * BATCHES


def raise_at(batch: int, *signals: int) -> Callable[[int], None]:
    def before(count: int) -> None:
        if count == batch:
            for signum in signals:
                signal.raise_signal(signum)

    return before


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("batch", [0, 2, 3, EPOCHS * BATCHES - 1])
def test_a_signal_ends_the_fit_after_the_running_batch(
    whole: Session, tmp_path: Path, signum: int, code: int, batch: int
) -> None:
    first, second = Session(tmp_path), Session(tmp_path)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    first.train.before = raise_at(batch, signum)
    with pytest.raises(SystemExit) as stopped:
        first.fit(checkpoint_minutes=60)
    assert stopped.value.code == code
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert len(first.train.served) == batch + 1
    second.fit(checkpoint_minutes=60)
    assert first.train.served + second.train.served == whole.train.served
    assert_ends_alike(second, whole)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_validating_waits_for_the_end_of_the_epoch(tmp_path: Path, signum: int, code: int) -> None:
    first, second = Session(tmp_path), Session(tmp_path)
    first.valid.before = raise_at(0, signum)
    with pytest.raises(SystemExit) as stopped:
        first.fit()
    assert stopped.value.code == code
    second.fit()
    assert len(first.valid.served) == 1
    assert len(first.train.served + second.train.served) == EPOCHS * BATCHES


VALID_BATCHES = 3


@pytest.fixture(scope="module")
def widely_validated(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """An uninterrupted fit whose validation takes several batches."""
    session = Session(tmp_path_factory.mktemp("widely"), valid=600)
    session.fit()
    assert len(session.valid.served) == EPOCHS * VALID_BATCHES
    return session


@pytest.mark.parametrize("minutes", [1e-9, 60])
@pytest.mark.parametrize("epoch", range(EPOCHS))
@pytest.mark.parametrize(("split", "batch"), [("valid", 0), ("valid", 1), ("valid", 2), ("train", BATCHES - 1)])
def test_a_validation_that_a_signal_cut_short_comes_again(
    widely_validated: Session, tmp_path: Path, split: str, batch: int, epoch: int, minutes: float
) -> None:
    first, second = (Session(tmp_path, valid=600) for _ in range(2))
    of_an_epoch = {"train": BATCHES, "valid": VALID_BATCHES}[split]
    getattr(first, split).before = raise_at(epoch * of_an_epoch + batch, signal.SIGTERM)
    with pytest.raises(SystemExit):
        first.fit(checkpoint_minutes=minutes)
    second.fit(checkpoint_minutes=minutes)
    validated = epoch + (split == "valid" and batch == VALID_BATCHES - 1)  # the whole epochs of the first life
    assert len(second.valid.served) == (EPOCHS - validated) * VALID_BATCHES
    assert_ends_alike(second, widely_validated)


@pytest.mark.parametrize("batch", [0, 1])
def test_a_signal_in_the_validation_after_max_steps_loses_nothing(tmp_path: Path, batch: int) -> None:
    whole, first, second = (Session(tmp_path / name, valid=600) for name in ("whole", "cut", "cut"))
    steps = BATCHES + 2  # the second epoch is not finished, but validated
    whole.fit(max_steps=steps)
    first.valid.before = raise_at(VALID_BATCHES + batch, signal.SIGTERM)
    with pytest.raises(SystemExit):
        first.fit(max_steps=steps)
    second.fit(max_steps=steps)
    assert len(second.valid.served) == VALID_BATCHES
    assert_ends_alike(second, whole)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_lightning_listens_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int, code: int
) -> None:
    def early(logs: Path) -> list[Any]:
        signal.raise_signal(signum)
        return []

    monkeypatch.setattr(graft.fit, "_loggers", early)
    session = Session(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        session.fit(checkpoint_minutes=60)
    assert stopped.value.code == code
    assert len(session.train.served) == 1
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_ctrl_c_twice_ends_at_once_and_saves_nothing_half_done(whole: Session, tmp_path: Path) -> None:
    first, second = Session(tmp_path), Session(tmp_path)
    first.train.before = raise_at(BATCHES + 1, signal.SIGINT, signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        first.fit(checkpoint_minutes=60)
    assert stopped.value.code == 130
    assert len(first.train.served) == BATCHES + 1  # the batch was not even served
    second.fit(checkpoint_minutes=60)
    assert second.train.served == whole.train.served[BATCHES:]
    assert_ends_alike(second, whole)


def test_it_fits_in_another_thread_which_gets_no_signals(tmp_path: Path) -> None:
    session, done = Session(tmp_path), []
    thread = threading.Thread(target=lambda: done.append(session.fit(max_epochs=1)))
    thread.start()
    thread.join()
    assert len(done) == 1


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_checkpoint_is_replaced_at_once_or_not_at_all(
    whole: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    first, second = Session(tmp_path), Session(tmp_path)
    replace = os.replace
    written = []

    def killed(source: str, target: Path) -> None:
        written.append(target.name)
        if written.count(name) == 2 and target.name == name:
            raise Killed
        replace(source, target)

    monkeypatch.setattr("graft.storage.os.replace", killed)
    with pytest.raises(Killed):
        first.fit(checkpoint_minutes=60)
    assert name in written
    monkeypatch.undo()
    torch.load(tmp_path / "checkpoints" / name, weights_only=True)
    second.fit(checkpoint_minutes=60)
    assert_ends_alike(second, whole)


def test_the_best_epoch_is_kept_though_a_later_life_of_the_fit_is_worse(tmp_path: Path) -> None:
    first, second, one = (Session(tmp_path / name, schedule="constant") for name in ("cut", "cut", "one"))
    for session in (first, second, one):
        worsening(session)
    first.train.before = kill_at(BATCHES + 1)
    with pytest.raises(Killed):
        first.fit()
    assert_same(second.fit(), one.fit(max_epochs=1))


@pytest.mark.parametrize("patience", [None, 2])
def test_a_diverged_fit_is_an_error_that_names_the_learning_rate(tmp_path: Path, patience: int | None) -> None:
    for _ in range(2):  # the second time from its last checkpoint
        session = Session(tmp_path, lr=1e30)
        with pytest.raises(RunError, match=r"valid/loss was not finite in any epoch; optim.lr=1e\+30"):
            session.fit(patience=patience)
    assert session.train.served == [] if patience is None else True


def test_logs_and_thin_checkpoints_are_written(tmp_path: Path) -> None:
    Session(tmp_path).fit(checkpoint_minutes=60)
    lines = (tmp_path / "logs" / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    assert {"epoch", "step", "train/loss", "valid/loss", "valid/accuracy"} <= set(lines[0].split(","))
    assert list((tmp_path / "logs" / "tensorboard").rglob("events.out.tfevents.*"))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "finished", "last.ckpt"]


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("cpu") == pick_device("auto") == "cpu"
    with pytest.raises(ConfigError, match=r"trainer.accelerator=gpu, but torch sees no GPU; accepted here: cpu, auto"):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("gpu") == pick_device("auto") == "cuda"
    assert pick_device("cpu") == "cpu"


def test_a_model_that_is_not_on_the_device_it_was_asked_for_is_an_error() -> None:
    callback = graft.callbacks.OnDevice("cuda")
    with pytest.raises(ConfigError, match="asked for cuda, but the model is on cpu"):
        callback.on_train_start(None, Session(Path()).classifier)  # type: ignore[arg-type]


LONG = ("trainer.patience=null", "optim.label_smoothing=0.1")
ON_FEATURES = (*LONG, "trainer.max_epochs=30")
ON_IMAGES = (*LONG, "trainer.max_epochs=5", "features.enabled=false", "data.workers=2")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("photos"))


@pytest.mark.parametrize(
    ("signum", "code", "reason", "path"),
    [
        (signal.SIGTERM, 143, "stopped by SIGTERM", ON_FEATURES),
        pytest.param(signal.SIGINT, 130, "stopped by Ctrl-C", ON_IMAGES, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, "stopped by SIGTERM", ON_IMAGES, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, "stopped by Ctrl-C", ON_FEATURES, marks=pytest.mark.slow),
    ],
    ids=["SIGTERM-features", "SIGINT-images", "SIGTERM-images", "SIGINT-features"],
)
def test_a_stopped_program_says_so_in_one_line_and_goes_on_exactly(
    photos: Path, tmp_path: Path, signum: int, code: int, reason: str, path: tuple[str, ...]
) -> None:
    process = start(tiny(photos, tmp_path / "cut", *path))
    wait_for(tmp_path / "cut" / "checkpoints" / "last.ckpt", process)
    os.killpg(process.pid, signum)  # as a terminal's Ctrl-C does, the loader's workers included
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert err == f"stopped; the same command with run_dir={tmp_path / 'cut'} goes on from here\n"
    state = read_json(tmp_path / "cut" / "run.json")
    assert (state["state"], state["reason"]) == ("unfinished", reason)
    assert not (tmp_path / "cut" / "checkpoints" / "finished").exists()

    resumed = run(tiny(photos, tmp_path / "cut", *path)).metrics
    whole = run(tiny(photos, tmp_path / "whole", *path)).metrics
    assert lasting(resumed) == pytest.approx(lasting(whole), abs=1e-6, rel=0)
