"""Whole runs on tiny photos: their files and figures, what they reuse, the sealed test split, and sweeps."""

from __future__ import annotations

import ast
import csv
import json
import math
import os
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import graft.assembly
import graft.evaluate
from graft.classifier import Classifier
from graft.data.folder import Split, scan
from graft.environment import git_sha
from graft.errors import ConfigError, DataError, RunError
from graft.features.cache import usage
from graft.images import render
from graft.photos import Photos
from graft.stores import LocalStore
from graft.trainer import train
from graft.transforms import normalise
from tests.composing import ROOT, composed
from tests.pictures import draw_folder, spoil, truncate
from tests.training import lasting, read_json, run, start, tiny

FIGURES = (
    "loss",
    "loss_low",
    "loss_high",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "top5_accuracy",
    "macro_f1",
    "macro_f1_low",
    "macro_f1_high",
    "ece",
    "ece_calibrated",
    "images",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def first(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run whose cache the tests of this file share."""
    return run(tiny(photos, tmp_path_factory.mktemp("runs") / "first")).run_dir


def metrics_of(run_dir: Path) -> dict[str, float]:
    found: dict[str, float] = read_json(run_dir / "metrics.json")
    return found


def train_losses(run_dir: Path) -> list[float]:
    """The training loss at every logged step."""
    with (run_dir / "logs" / "csv" / "version_0" / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def valid_losses(run_dir: Path) -> list[float]:
    """valid/loss of every epoch."""
    with (run_dir / "logs" / "csv" / "version_0" / "metrics.csv").open() as file:
        return [float(row["valid/loss"]) for row in csv.DictReader(file) if row["valid/loss"]]


def test_the_files_of_a_run(first: Path) -> None:
    assert {path.name for path in first.iterdir()} == {
        ".lock",
        "bundle",
        "checkpoints",
        "config.yaml",
        "data.json",
        "debugger",
        "environment.json",
        "evaluation.json",
        "logs",
        "metrics.json",
        "overrides.json",
        "predictions.csv",
        "profiler",
        "report.html",
        "run.json",
    }
    assert read_json(first / "run.json")["state"] == "finished"
    environment = read_json(first / "environment.json")
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"git_sha", "python", "platform", "processor", "cores", "argv", "device"} <= set(environment)
    assert environment["device"] == "cpu"
    described = read_json(first / "data.json")
    assert described["photos"] == {"train": 36, "valid": 12, "test": 12}
    assert set(described["classes"]) == {"train", "valid"}  # test's are its labels


def test_the_commit_is_that_of_this_code_and_of_no_checkout_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@example.com", "-C", str(tmp_path))
    for command in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "somebody else's")):
        subprocess.run([*git, *command], check=True)
    copy = tmp_path / "environment.py"
    copy.write_text("an installed copy")
    monkeypatch.setattr("graft.environment.__file__", str(copy))
    assert git_sha() == "unknown"
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "ours"], check=True)
    done = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert git_sha() == done.stdout.strip()
    copy.write_text("changed")
    assert git_sha() == f"{done.stdout.strip()}-dirty"


def test_metrics_are_flat_and_complete(first: Path) -> None:
    metrics = metrics_of(first)
    expected = {f"{split}/{figure}" for split in ("valid", "test") for figure in FIGURES}
    expected |= {"test/openings", "data/truncated", "data/undecodable", "data/leaks"}
    expected |= {"features/computed", "features/reused", "features/images_per_s"}
    expected |= {"time/features_s", "time/fit_s", "time/total_s"}
    assert set(metrics) == expected
    assert all(math.isfinite(value) for value in metrics.values())
    assert (metrics["features/computed"], metrics["features/reused"]) == (60, 0)
    assert metrics["features/images_per_s"] == pytest.approx(60 / metrics["time/features_s"])
    assert metrics["time/features_s"] + metrics["time/fit_s"] < metrics["time/total_s"]
    for split in ("valid", "test"):
        assert metrics[f"{split}/accuracy_low"] <= metrics[f"{split}/accuracy"] <= metrics[f"{split}/accuracy_high"]
        assert metrics[f"{split}/images"] == 12


def test_predictions_agree_with_the_figures(first: Path, photos: Path) -> None:
    with (first / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    metrics, evaluation = metrics_of(first), read_json(first / "evaluation.json")
    for split in ("valid", "test"):
        mine = [row for row in rows if row["split"] == split]
        assert [Path(row["path"]) for row in mine] == sorted((photos / split).rglob("*.*"))
        assert all(row["label"] == Path(row["path"]).parent.name for row in mine)
        right = [row["class_1"] == row["label"] for row in mine]
        assert np.mean(right) == pytest.approx(metrics[f"{split}/accuracy"])
        per_class = {name: np.mean([r for r, row in zip(right, mine, strict=True) if row["label"] == name]) for name in
                     ("class_0", "class_1", "class_2")}  # fmt: skip
        assert evaluation[split]["per_class_accuracy"] == pytest.approx(per_class)
    for row in rows:
        shares = [float(row[f"probability_{place}"]) for place in (1, 2, 3)]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert {row[f"class_{place}"] for place in (1, 2, 3)} == {"class_0", "class_1", "class_2"}


def test_it_learns(photos: Path, tmp_path: Path, first: Path) -> None:
    cache = f"features.cache_dir={first.parent / 'cache'}"
    metrics = run(tiny(photos, tmp_path / "run", cache, "trainer.max_epochs=20")).metrics
    assert metrics["valid/accuracy"] >= 0.9
    assert metrics["valid/loss"] < math.log(3) / 2
    assert metrics["features/computed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_the_same_seed_gives_the_same_metrics_from_a_cache_of_its_own(
    photos: Path, tmp_path: Path, engine: str
) -> None:
    more = (f"features.engine={engine}", "features.precision=auto")
    one, two = (run(tiny(photos, tmp_path / name / "run", *more)).metrics for name in ("one", "two"))
    assert one["features/computed"] == two["features/computed"] == 60
    same = {name for name in one if not name.startswith("time/")} - {"features/images_per_s"}
    assert {name: one[name] for name in same} == {name: two[name] for name in same}


def test_another_seed_gives_other_metrics(photos: Path, tmp_path: Path, first: Path) -> None:
    other = run(tiny(photos, tmp_path / "other", "seed=1")).metrics
    assert other["valid/loss"] != metrics_of(first)["valid/loss"]


def test_a_run_is_repeated_from_its_config(photos: Path, first: Path, tmp_path: Path) -> None:
    config = composed(f"overrides_from={first}/config.yaml", f"run_dir={tmp_path}/again")
    again = train(config).metrics
    assert lasting(again) == lasting(metrics_of(first))
    assert again["features/computed"] == 0
    ours, theirs = ((folder / "config.yaml").read_text().splitlines() for folder in (tmp_path / "again", first))
    assert [line for line in ours if line not in theirs] == [f"run_dir: {tmp_path}/again"]


def test_another_learning_rate_looks_at_no_photo_again(
    photos: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a photo was decoded")

    monkeypatch.setattr("graft.features.decode.render", refuse)
    more = (f"features.cache_dir={first.parent / 'cache'}", "optim.lr=0.02")
    metrics = run(tiny(photos, tmp_path / "run", *more)).metrics
    assert (metrics["features/computed"], metrics["features/reused"]) == (0, 60)
    assert metrics["features/images_per_s"] == 0
    assert metrics["valid/loss"] != metrics_of(first)["valid/loss"]


def test_a_changed_photo_is_the_only_one_computed_again(photos: Path, tmp_path: Path) -> None:
    mine = tmp_path / "photos"
    shutil.copytree(photos, mine)
    run(tiny(mine, tmp_path / "before", "trainer.max_epochs=1"))
    changed = mine / "train" / "class_0" / "000.jpg"
    changed.write_bytes((mine / "train" / "class_1" / "000.jpg").read_bytes()[:-2] + b"\0\xff\xd9")
    metrics = run(tiny(mine, tmp_path / "after", "trainer.max_epochs=1")).metrics
    assert (metrics["features/computed"], metrics["features/reused"]) == (1, 59)


def test_without_a_test_split_it_trains_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = draw_folder(tmp_path / "photos", test=0)
    result = run(tiny(root, tmp_path / "run"))
    assert "has no test/ split: this run trains and validates" in capsys.readouterr().err
    assert "valid/accuracy" in result.metrics
    assert not [name for name in result.metrics if name.startswith("test/")]
    assert not (tmp_path / "cache" / "test_openings.jsonl").exists()


def test_test_stays_sealed_where_it_is_not_wanted(photos: Path, tmp_path: Path, first: Path) -> None:
    cache = tmp_path / "cache"
    result = run(tiny(photos, tmp_path / "run", "evaluate.test=false"))
    assert not [name for name in result.metrics if name.startswith("test/")]
    assert not (cache / "test_openings.jsonl").exists()
    assert ",test," not in (result.run_dir / "predictions.csv").read_text()
    assert set(read_json(result.run_dir / "evaluation.json")) == {"valid"}
    # Its features may be computed all the same: they say nothing of labels.
    assert result.metrics["features/computed"] == 60


class Seal:
    """Watches a run: which inputs its classifier got, and whether evaluate_test had opened the test split."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = False
        self.before: list[torch.Tensor] = []
        self.after: list[torch.Tensor] = []
        evaluate_test, opened, labels = graft.evaluate.evaluate_test, Split.opened, Split.labels

        def opening(*args: Any, **known: Any) -> Any:
            self.open = True
            return evaluate_test(*args, **known)

        def checked_opened(split: Split) -> Split:
            assert self.open, "the test split was opened before evaluate_test"
            return opened(split)

        def checked_labels(split: Split) -> Any:
            assert self.open or split.name != "test", "test labels were asked for before evaluate_test"
            return labels(split)

        monkeypatch.setattr("graft.trainer.evaluate_test", opening)
        monkeypatch.setattr(Split, "opened", checked_opened)
        monkeypatch.setattr(Split, "labels", checked_labels)

    def watch(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        (self.after if self.open else self.before).append(inputs[0].detach().clone())

    def saw(self, seen: list[torch.Tensor], wanted: torch.Tensor) -> int:
        """How many of `wanted`, [N, ...], are among what a module got."""
        rows = torch.cat([batch.flatten(1).float() for batch in seen if batch.shape[1:] == wanted.shape[1:]])
        return sum(bool((row == rows).all(1).any()) for row in wanted.flatten(1).float())


@pytest.mark.parametrize("path", ["features", "images"])
def test_nothing_sees_test_before_it_is_opened(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    seal = Seal(monkeypatch)
    build, look = graft.assembly.build_classifier, graft.assembly.look
    looked: list[Photos] = []

    def watched(*args: Any) -> Classifier:
        classifier = build(*args)
        classifier.head.register_forward_pre_hook(seal.watch)
        if path == "images":  # elsewhere OpenVINO computes the features of all splits
            classifier.backbone.register_forward_pre_hook(seal.watch)
        return classifier

    def keeping(*args: Any) -> Photos:
        looked.append(look(*args))
        return looked[0]

    monkeypatch.setattr("graft.trainer.build_classifier", watched)
    monkeypatch.setattr("graft.trainer.look", keeping)
    more = ["features.engine=openvino"] if path == "features" else ["features.enabled=false", "data.augment=false"]
    result = run(tiny(photos, tmp_path / "run", *more, "trainer.max_epochs=1"))
    assert seal.open
    assert result.metrics["test/images"] == 12
    wanted = {split: inputs_of(looked[0], split) for split in ("valid", "test")}
    assert seal.saw(seal.before, wanted["valid"]) == 12
    assert seal.saw(seal.before, wanted["test"]) == 0
    assert seal.saw(seal.after, wanted["test"]) == 12


def inputs_of(photos: Photos, split: str) -> torch.Tensor:
    """What the head gets for the photos of a split, [N, D], or the backbone, [N, 3, S, S]."""
    if photos.views:
        view = photos.views[split][0]
        return torch.from_numpy(view.table.features(view.rows))
    usable = photos.splits[split]
    pixels = [render(usable.read(index), photos.spec).pixels for index in range(len(usable))]
    return normalise(torch.from_numpy(np.stack(pixels)), photos.spec.mean, photos.spec.std)


def test_labels_of_a_sealed_split_are_refused(photos: Path) -> None:
    sealed = scan(LocalStore(photos)).test
    assert sealed is not None
    with pytest.raises(DataError, match=r"the labels of test are sealed; only evaluate.py opens them"):
        sealed.labels()


def test_only_evaluate_opens_test() -> None:
    callers = []
    for path in sorted((ROOT / "src").rglob("*.py")) + sorted(ROOT.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "opened":
                callers.append(path.relative_to(ROOT).as_posix())
            sealed = isinstance(node, ast.keyword) and node.arg == "sealed"
            if sealed and path.name != "folder.py":
                callers.append(path.relative_to(ROOT).as_posix())
    assert callers == ["src/graft/evaluate.py"]


@pytest.mark.slow
def test_openings_are_counted_over_runs_and_a_resumed_run_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise SystemError  # after test was opened, before the run was finished

    assert run(tiny(photos, tmp_path / "a", "trainer.max_epochs=1")).metrics["test/openings"] == 1
    with monkeypatch.context() as patch:
        patch.setattr("graft.trainer.write_predictions", killed)
        with pytest.raises(SystemError):
            run(tiny(photos, tmp_path / "b", "trainer.max_epochs=1"))
    assert run(tiny(photos, tmp_path / "b", "trainer.max_epochs=1")).metrics["test/openings"] == 2
    assert run(tiny(photos, tmp_path / "c", "trainer.max_epochs=2")).metrics["test/openings"] == 3
    lines = [json.loads(line) for line in (tmp_path / "cache" / "test_openings.jsonl").read_text().splitlines()]
    assert len({line["data_fingerprint"] for line in lines}) == 1
    assert len({line["run_id"] for line in lines}) == 3
    assert len({line["config_hash"] for line in lines}) == 2


def test_a_finished_run_is_refused_and_left_as_it_is(photos: Path, first: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=f"run_dir={first} holds a finished run"):
        run(tiny(photos, first))
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_run_killed_while_evaluating_fits_nothing_again(
    photos: Path, tmp_path: Path, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise SystemError("out of memory")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it fitted again")

    overrides = tiny(photos, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("graft.trainer.evaluate", killed)
        with pytest.raises(SystemError):
            run(overrides)
    assert read_json(tmp_path / "run" / "run.json")["reason"] == "SystemError: out of memory"
    assert not (tmp_path / "run" / "metrics.json").exists()
    with pytest.raises(RunError, match=r"optim\.lr=0\.01 there and 0\.5 here"):
        run([*overrides, "optim.lr=0.5"])
    monkeypatch.setattr(Classifier, "training_step", refuse)
    assert lasting(run(overrides).metrics) == lasting(metrics_of(first))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "stopped", "reason"),
    [(signal.SIGTERM, SystemExit, "stopped by SIGTERM"), (signal.SIGINT, KeyboardInterrupt, "stopped by Ctrl-C")],
)
def test_a_run_stopped_while_it_looks_at_the_photos_goes_on(
    photos: Path,
    tmp_path: Path,
    first: Path,
    monkeypatch: pytest.MonkeyPatch,
    signum: int,
    stopped: type[BaseException],
    reason: str,
) -> None:
    decoded = 0

    def stopping(*args: Any) -> Any:
        nonlocal decoded
        decoded += 1
        if decoded == 30:
            signal.raise_signal(signum)
        return render(*args)

    overrides = tiny(photos, tmp_path / "run", "features.batch_size=2")
    with monkeypatch.context() as patch:
        patch.setattr("graft.features.decode.render", stopping)
        with pytest.raises(stopped):
            run(overrides)
    assert 30 <= decoded < 60
    assert read_json(tmp_path / "run" / "run.json")["reason"] == reason
    assert lasting(run(overrides).metrics) == pytest.approx(lasting(metrics_of(first)), abs=1e-6, rel=0)


def test_a_gpu_that_is_not_there_is_an_error_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(ConfigError, match=r"trainer\.accelerator=gpu, but torch sees no GPU"):
        run(tiny(photos, tmp_path / "run", "trainer.accelerator=gpu"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_demo_photos_are_marked_as_toys_everywhere(tmp_path: Path) -> None:
    draw = ("data=demo", f"data.root={tmp_path / 'demo'}", "data.demo_per_class=1", f"run_dir={tmp_path / 'run'}")
    fast = ("model.backbone=squeezenet1_1", "model.image_size=64", "model.resize=64", "trainer.max_epochs=1")
    result = run([*draw, *fast, f"features.cache_dir={tmp_path / 'cache'}", "trainer.progress=false"])
    assert result.toy
    assert read_json(result.run_dir / "bundle" / "manifest.json")["toy"] is True
    assert "toy figures" in (result.run_dir / "bundle" / "README.md").read_text()
    assert len(read_json(result.run_dir / "data.json")["classes"]["train"]) >= 12


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of which train has 24, 8 and 4 photos."""
    root = draw_folder(tmp_path_factory.mktemp("uneven"), train=24, valid=4, test=0)
    for name, kept in (("class_1", 8), ("class_2", 4)):
        for path in sorted((root / "train" / name).iterdir())[kept:]:
            path.unlink()
    return root


@pytest.mark.parametrize("balance", ["none", "sampler", "loss"])
def test_balance_decides_which_photos_are_drawn_and_what_they_weigh(
    uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, balance: str
) -> None:
    drawn: Counter[int] = Counter()
    step = Classifier.training_step

    def counting(self: Classifier, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        drawn.update(batch[1].tolist())
        return step(self, batch, index)

    monkeypatch.setattr(Classifier, "training_step", counting)
    result = run(tiny(uneven, tmp_path / "run", f"data.balance={balance}", "trainer.max_epochs=10"))
    checkpoint = torch.load(result.run_dir / "checkpoints" / "best.ckpt", weights_only=True)
    weights = checkpoint["hyper_parameters"]["class_weights"]
    assert sum(drawn.values()) == 360
    if balance == "sampler":
        assert all(abs(drawn[label] - 120) < 40 for label in range(3))  # 4.5 standard deviations
    else:
        assert drawn == {0: 240, 1: 80, 2: 40}
    # 36 photos of 3 classes: 12 / 24, 12 / 8 and 12 / 4.
    assert weights == (pytest.approx([0.5, 1.5, 3.0]) if balance == "loss" else None)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "part"), [("resnet18", "layer4"), ("squeezenet1_1", "all")])
def test_unfrozen_parts_train_through_the_images(photos: Path, tmp_path: Path, backbone: str, part: str) -> None:
    more = (f"model.backbone={backbone}", f"model.unfreeze={part}", "optim.lr=0.001", "trainer.max_epochs=2")
    result = run(tiny(photos, tmp_path / "run", *more, "data.batch_size=6", "optim.backbone_lr_factor=0.5"))
    losses = valid_losses(result.run_dir)
    assert losses[-1] < losses[0]
    assert result.metrics["valid/loss"] < math.log(3)
    assert not [name for name in result.metrics if name.startswith("features/")]
    manifest = read_json(result.run_dir / "bundle" / "manifest.json")
    assert manifest["trained_part"] == f"the head and {part} of the backbone"
    assert (tmp_path / "cache" / "features").exists()  # what the look at the photos found


def keep_inputs(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The inputs of every training step from now on."""
    inputs: list[torch.Tensor] = []
    step = Classifier.training_step

    def keeping(self: Classifier, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        inputs.append(batch[0])
        return step(self, batch, index)

    monkeypatch.setattr(Classifier, "training_step", keeping)
    return inputs


def test_views_are_computed_once_and_shown_in_turn(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = keep_inputs(monkeypatch)
    metrics = run(tiny(photos, tmp_path / "two", "features.views=2", "data.batch_size=36")).metrics
    assert (metrics["features/computed"], metrics["features/reused"]) == (60 + 2 * 36, 0)
    distinct = {row.numpy().tobytes() for epoch in inputs for row in epoch}
    assert len(distinct) == 3 * 36  # three epochs show the plain view and both others of every photo
    metrics = run(tiny(photos, tmp_path / "three", "features.views=3", "data.batch_size=36")).metrics
    assert (metrics["features/computed"], metrics["features/reused"]) == (36, 60 + 2 * 36)


def test_without_the_plain_view_only_augmented_ones_train(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = keep_inputs(monkeypatch)
    run(tiny(photos, tmp_path / "run", "features.views=1", "features.plain=false", "data.batch_size=36"))
    distinct = {row.numpy().tobytes() for epoch in inputs for row in epoch}
    assert len(inputs) == 3
    assert len(distinct) == 36


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")))
def test_every_experiment_runs_one_step(photos: Path, tmp_path: Path, experiment: str) -> None:
    where = (f"data.root={photos}", f"run_dir={tmp_path / 'run'}", f"features.cache_dir={tmp_path / 'cache'}")
    small = ("model.backbone=squeezenet1_1", "model.weights=none", "model.image_size=64", "features.engine=torch")
    result = run(
        [f"experiment={experiment}", "data=folder", *where, *small, "features.precision=fp32", "trainer.max_steps=1"]
    )
    last = torch.load(result.run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 1
    assert {"valid/accuracy", "test/accuracy"} <= set(result.metrics)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = draw_folder(tmp_path_factory.mktemp("damaged"), train=4, test=0)
    truncate(root / "train" / "class_0" / "000.jpg")
    spoil(root / "train" / "class_1" / "001.jpg")
    return root


@pytest.mark.parametrize("path", ["features", "images"])
@pytest.mark.parametrize(("policy", "used"), [("repair", 11), ("skip", 10)])
def test_damaged_photos_are_counted_and_named(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str, used: int, path: str
) -> None:
    more = (f"data.on_corrupt={policy}", f"features.enabled={path == 'features'}", "trainer.max_epochs=1")
    result = run(tiny(damaged, tmp_path / "run", *more))
    described = read_json(result.run_dir / "data.json")
    assert described["photos"]["train"] == used
    assert described["damaged"][0] == {
        "split": "train",
        "truncated": ["class_0/000.jpg"],
        "undecodable": ["class_1/001.jpg"],
    }
    assert (result.metrics["data/truncated"], result.metrics["data/undecodable"]) == (1, 1)
    found = {finding["check"]: finding for finding in described["findings"]}
    assert found["truncated"]["files"] == ["train/class_0/000.jpg"]
    assert found["not_an_image"]["files"] == ["train/class_1/001.jpg"]
    assert "told at the end and in data.json" in capsys.readouterr().err
    for check in ("truncated", "not_an_image"):
        assert sum(remark.startswith(f"{check}: train: ") for remark in result.remarks) == 1


def test_damaged_photos_of_test_are_counted_and_not_named(tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "photos", train=4)
    truncate(root / "test" / "class_0" / "000.jpg")
    spoil(root / "test" / "class_1" / "001.jpg")
    result = run(tiny(root, tmp_path / "run", "trainer.max_epochs=1", "evaluate.test=false"))
    counted = {"split": "test", "truncated": 1, "undecodable": 1}
    assert read_json(result.run_dir / "data.json")["damaged"][2] == counted
    assert read_json(result.run_dir / "bundle" / "manifest.json")["data"]["damaged"][2] == counted
    found = {finding["check"]: finding for finding in read_json(result.run_dir / "data.json")["findings"]}
    for check in ("truncated", "not_an_image"):
        assert (found[check]["count"], found[check]["files"]) == (1, [])


def test_what_of_a_folder_is_not_learned_is_said(tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "photos", classes=6, train=1, valid=1, test=0)
    for label in (1, 2, 4, 5):
        shutil.rmtree(root / "train" / f"class_{label}")
    shutil.copy(root / "train" / "class_0" / "000.jpg", root / "train" / "IMG.jpg")
    result = run(tiny(root, tmp_path / "run", "trainer.max_epochs=1"))
    found = {finding["check"]: finding for finding in read_json(result.run_dir / "data.json")["findings"]}
    assert found["missing_class"]["files"] == [f"train/class_{label}" for label in (1, 2, 4, 5)]
    assert found["ignored_files"]["files"] == ["train/IMG.jpg"]
    assert any("never predicted right" in remark for remark in result.remarks)


def test_a_whole_folder_is_opened_in_silence(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graft.assembly.open_folder(composed(*tiny(photos, tmp_path / "run")))
    assert capsys.readouterr().err == ""


def test_a_photo_whose_name_is_not_utf8_is_predicted_too(tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "photos", train=4)
    photo = root / "test" / "class_0" / "000.jpg"
    photo.rename(photo.with_name(os.fsdecode(b"caf\xe9.jpg")))
    result = run(tiny(root, tmp_path / "run", "trainer.max_epochs=1"))
    assert f"{photo.parent}/caf\\udce9.jpg,test,class_0," in (result.run_dir / "predictions.csv").read_text("utf-8")


def table_of(out: str) -> dict[str, list[str]]:
    """The rows of the table at the end of a sweep: run -> its cells, wrapped ones joined."""
    rows: dict[str, list[str]] = {}
    for line in out[out.index("runs of") :].splitlines():
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        if cells[0].isdigit():
            rows[cells[0]] = cells
        elif rows and len(cells) == 5:
            *_, last = rows
            rows[last] = [f"{cell} {more}".strip() for cell, more in zip(rows[last], cells, strict=True)]
    return rows


@pytest.mark.slow
def test_a_sweep_shares_one_look_at_the_photos_and_ends_with_a_table(photos: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    process = start(tiny(photos, sweep, "optim.lr=0.01,0.02", "model.hidden=8,16", "trainer.max_epochs=1"), "-m")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    members = [metrics_of(sweep / str(number)) for number in range(4)]
    assert sum(member["features/computed"] for member in members) == 60
    assert len({member["valid/loss"] for member in members}) == 4
    assert not [name for member in members for name in member if name.startswith("test/")]
    rows = table_of(out)
    assert list(rows) == sorted(rows, key=lambda number: members[int(number)]["valid/loss"])
    for number, (_, overrides, loss, accuracy, _) in rows.items():
        member = members[int(number)]
        assert (loss, accuracy) == (f"{member['valid/loss']:.4f}", f"{member['valid/accuracy']:.4f}")
        given = read_json(sweep / number / "overrides.json")
        assert {line for line in given if "lr=" in line or "hidden=" in line} <= set(overrides.split())
    assert len(rows) == 4


@pytest.mark.slow
def test_a_member_that_fails_is_in_the_table_and_the_others_finish(photos: Path, tmp_path: Path) -> None:
    root, sweep = tmp_path / "photos", tmp_path / "sweep"
    shutil.copytree(photos, root)
    spoil(root / "train" / "class_0" / "000.jpg")
    overrides = tiny(root, sweep, "data.on_corrupt=error,skip", "trainer.max_epochs=1")
    process = start([*overrides, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], "-m")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in out + err
    assert read_json(sweep / "0" / "run.json")["state"] == "failed"
    assert read_json(sweep / "1" / "run.json")["state"] == "finished"
    assert [space.photos for space in usage(tmp_path / "cache" / "features")] == [60]  # of both together
    rows = table_of(out)
    assert list(rows) == ["1", "0"]
    assert rows["0"][2].startswith("DataError: data.on_corrupt=error and 1 damaged photo in train:")
    assert rows["1"][2] == f"{metrics_of(sweep / '1')['valid/loss']:.4f}"
    assert "data.on_corrupt=error" in rows["0"][1]
