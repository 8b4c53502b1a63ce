"""The classifier: what stays frozen, what it computes on either path, and what its checkpoints hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchmetrics import Metric

from graft.artifacts import read_parity
from graft.classifier import Classifier
from graft.data.folder import scan
from graft.data.module import ImageData
from graft.errors import WeightsError
from graft.fit import fit, quiet_lightning
from graft.images import render
from graft.inputs import InputSpec
from graft.model import build_backbone, fingerprint
from graft.stores import LocalStore
from graft.trainer import RunResult
from tests.pictures import draw_folder
from tests.training import run, tiny

SPEC = InputSpec(64, 64)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("photos"), train=4, valid=3, test=0)


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunResult]:
    """One run per path to a trained classifier, by name."""
    folder = tmp_path_factory.mktemp("runs")
    paths = {
        "features": [],
        "images": ["features.enabled=false"],
        "part": ["model.unfreeze=features.12", "optim.lr=0.001"],
        "balanced": ["data.balance=loss"],
    }
    return {name: run(tiny(photos, folder / name, "trainer.max_epochs=2", *more)) for name, more in paths.items()}


def pixels(photos: Path) -> torch.Tensor:
    """Three images of each class, uint8 [9, 64, 64, 3]."""
    split = scan(LocalStore(photos)).valid
    return torch.from_numpy(np.stack([render(split.read(index), SPEC).pixels for index in range(len(split))]))


def train_on_images(photos: Path, folder: Path, **known: Any) -> Classifier:
    """Two epochs of Lightning over the photos themselves."""
    found = scan(LocalStore(photos))
    classifier = Classifier(num_classes=3, hidden=8, lr=0.01, backbone_lr_factor=1.0, **known)
    data = ImageData(found.train, found.valid, spec=SPEC, batch_size=6)
    quiet_lightning()
    return fit(
        classifier,
        data,
        checkpoints=folder / "checkpoints",
        logs=folder / "logs",
        device="cpu",
        max_epochs=2,
        max_steps=-1,
        patience=None,
        precision="fp32",
        checkpoint_minutes=60,
        progress=False,
    )


def changed(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of the parameters and buffers, BatchNorm's statistics included, that are not bit for bit the same."""
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def test_a_frozen_backbone_stays_bit_for_bit_the_same_statistics_included(photos: Path, tmp_path: Path) -> None:
    before = build_backbone("resnet18", seed=0).state_dict()
    assert sum("running_mean" in name for name in before) == 20
    trained = train_on_images(photos, tmp_path, backbone="resnet18", unfreeze="head")
    assert not changed(trained.backbone, before)
    fresh = Classifier("resnet18", 3, hidden=8)
    assert changed(trained.head, fresh.head.state_dict()) == set(fresh.head.state_dict())


def test_layer4_trains_and_nothing_else_of_the_backbone(photos: Path, tmp_path: Path) -> None:
    before = build_backbone("resnet18", seed=0).state_dict()
    trained = train_on_images(photos, tmp_path, backbone="resnet18", unfreeze="layer4")
    assert changed(trained.backbone, before) == {name for name in before if name.startswith("layer4.")}


def test_frozen_parts_are_in_eval_mode_after_train_was_called() -> None:
    classifier = Classifier("resnet18", 3, unfreeze="layer4").train()
    classifier.on_train_epoch_start()
    modes = {name: part.training for name, part in classifier.backbone.named_modules() if name}
    assert not any(training for name, training in modes.items() if not name.startswith("layer4"))
    assert all(training for name, training in modes.items() if name.startswith("layer4"))
    assert classifier.head.training


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "resnet18"])
def test_logits_of_features_are_those_of_the_images(photos: Path, backbone: str) -> None:
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    classifier = Classifier(backbone, 3, hidden=8, mean=mean, std=std).eval()
    images = pixels(photos)
    with torch.inference_mode():
        # Written out by hand: the pixels to 0..1, normalised per channel, channels first.
        normalised = ((images / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)
        features = classifier.backbone(normalised)
        expected = classifier.head(features)
        torch.testing.assert_close(classifier.logits(images), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(classifier.logits(features), expected, atol=1e-4, rtol=0)
    assert expected.shape == (9, 3)
    assert expected.std() > 1e-3  # otherwise any answer would do


@pytest.mark.parametrize("checkpoint", ["best.ckpt", "last.ckpt"])
@pytest.mark.parametrize("path", ["features", "images", "part", "balanced"])
def test_a_checkpoint_gives_the_bundles_logits_whichever_path_trained_it(
    runs: dict[str, RunResult], path: str, checkpoint: str
) -> None:
    run_dir = runs[path].run_dir
    loaded = Classifier.load_from_checkpoint(
        run_dir / "checkpoints" / checkpoint, map_location="cpu", weights_only=True
    ).eval()
    samples = read_parity(run_dir / "bundle")
    images = np.stack([render(sample.data, SPEC).pixels for sample in samples])
    with torch.inference_mode():
        logits = loaded(torch.from_numpy(images)).numpy()
    # valid/loss falls in both epochs, so best and last are the same epoch.
    np.testing.assert_allclose(logits, np.stack([sample.logits for sample in samples]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("path", "thin"), [("features", True), ("images", True), ("part", False)])
def test_a_checkpoint_holds_the_backbone_only_where_it_changed(
    runs: dict[str, RunResult], path: str, thin: bool
) -> None:
    content = torch.load(runs[path].run_dir / "checkpoints" / "best.ckpt", weights_only=True)
    kept = {name.partition(".")[0] for name in content["state_dict"]}
    assert kept == ({"head"} if thin else {"head", "backbone"})
    assert ("backbone_fingerprint" in content) == thin


def test_hyperparameters_are_plain_values(runs: dict[str, RunResult]) -> None:
    content = torch.load(runs["balanced"].run_dir / "checkpoints" / "best.ckpt", weights_only=True)
    plain = (str, int, float, list, type(None))
    assert {name: type(value) for name, value in content["hyper_parameters"].items() if type(value) not in plain} == {}
    assert content["hyper_parameters"]["class_weights"] == [1.0, 1.0, 1.0]


def test_a_changed_weights_file_is_an_error_and_not_another_model(photos: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(build_backbone("squeezenet1_1", seed=1).state_dict(), weights)
    result = run(tiny(photos, tmp_path / "run", f"model.weights={weights}", "trainer.max_epochs=1"))
    best = result.run_dir / "checkpoints" / "best.ckpt"
    Classifier.load_from_checkpoint(best, weights_only=True)
    torch.save(build_backbone("squeezenet1_1", seed=2).state_dict(), weights)
    with pytest.raises(WeightsError, match=f"model.weights={weights} changed since the checkpoint was written"):
        Classifier.load_from_checkpoint(best, weights_only=True)


def test_the_fingerprint_is_that_of_the_weights_as_they_were_loaded(photos: Path, tmp_path: Path) -> None:
    trained = train_on_images(photos, tmp_path, backbone="squeezenet1_1", unfreeze="all")
    loaded = fingerprint(build_backbone("squeezenet1_1", seed=0))
    assert trained.backbone_fingerprint == loaded != fingerprint(trained.backbone)


def test_the_seed_decides_backbone_and_head_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    same, other = (Classifier("squeezenet1_1", 3, seed=seed).state_dict() for seed in (4, 5))
    assert torch.equal(torch.rand(3), expected)
    again = Classifier("squeezenet1_1", 3, seed=4).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in same.items())
    assert not torch.equal(same["head.0.weight"], other["head.0.weight"])


def test_dropout_differs_from_step_to_step_and_from_seed_to_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = set()
    for seed in (0, 1):
        classifier = Classifier("squeezenet1_1", 3, unfreeze="all", seed=seed)
        for step in (0, 1, 2, 2):
            monkeypatch.setattr(Classifier, "global_step", step)
            classifier.on_train_batch_start((torch.empty(0), torch.empty(0)), 0)
            drawn.add(torch.rand(1).item())
    assert len(drawn) == 6


def losses(monkeypatch: pytest.MonkeyPatch, **known: Any) -> tuple[torch.Tensor, dict[str, float], torch.Tensor]:
    """The training loss, the losses logged by both steps, and the logits, of one batch of features."""
    classifier = Classifier("squeezenet1_1", 3, hidden=8, **known)
    logged: dict[str, Any] = {}
    monkeypatch.setattr(classifier, "log", lambda name, value, **_: logged.update({name: value}))
    batch = torch.randn(6, 512, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 1, 1, 2])
    loss = classifier.training_step(batch, 0)
    classifier.validation_step(batch, 0)
    # A metric gives its value, a loss is one.
    values = {name: value.compute() if isinstance(value, Metric) else value for name, value in logged.items()}
    known_losses = {name: value.item() for name, value in values.items() if name.endswith("/loss")}
    return loss.detach(), known_losses, classifier.logits(batch[0]).detach()


def test_class_weights_and_smoothing_are_in_the_training_loss_and_not_in_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, smoothing = torch.tensor([0.5, 1.0, 3.0]), 0.2
    loss, logged, logits = losses(monkeypatch, class_weights=weights.tolist(), label_smoothing=smoothing)
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    surprise = -logits.log_softmax(1)
    picked = surprise[torch.arange(6), labels]
    # torch's definition: the weighted target, and the weighted mean over all classes for the smoothed share.
    total = weights[labels].sum()
    plain, spread = (weights[labels] * picked).sum() / total, (surprise * weights).sum() / total
    torch.testing.assert_close(loss, (1 - smoothing) * plain + smoothing / 3 * spread)
    assert logged["train/loss"] == pytest.approx(float(loss))
    assert logged["valid/loss"] == pytest.approx(float(picked.mean()), rel=1e-5)
    assert not math.isclose(float(loss), float(picked.mean()), rel_tol=1e-3)


def test_without_weights_or_smoothing_both_losses_are_plain_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, logged, logits = losses(monkeypatch)
    expected = functional.cross_entropy(logits, torch.tensor([0, 0, 0, 1, 1, 2]))
    torch.testing.assert_close(loss, expected)
    assert logged["valid/loss"] == pytest.approx(float(expected))


def test_optimiser_groups_have_their_own_learning_rates() -> None:
    classifier = Classifier("resnet18", 3, unfreeze="layer4", lr=0.5, backbone_lr_factor=0.1, weight_decay=0.25)
    optimizer = classifier.configure_optimizers()
    groups = {group["name"]: group for group in optimizer.param_groups}
    rates = {name: (group["lr"], group["weight_decay"], len(group["params"])) for name, group in groups.items()}
    layer4 = sum(name.startswith("layer4") for name, _ in classifier.backbone.named_parameters())
    assert rates == {"head": (0.5, 0.25, 4), "backbone": (0.05, 0.25, layer4)}
