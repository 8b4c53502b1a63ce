"""The bundle of a trained run: another process rebuilds the model from it alone, and its card says what it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import graft
import graft.bundle
from graft.artifacts import Manifest, read_manifest, read_parity
from graft.bundle import model_card, parity_samples, save_bundle
from graft.classifier import Classifier
from graft.data.folder import Split, scan
from graft.errors import GraftError, RunError
from graft.inputs import InputSpec
from graft.model import build_backbone, fingerprint
from graft.stores import LocalStore
from tests.composing import ROOT
from tests.pictures import draw_folder
from tests.training import run, tiny

# It may see what an endpoint sees, and nothing that trains.
ALONE = """
import sys
from pathlib import Path
import numpy as np
import torch
from graft.artifacts import read_manifest, read_parity, read_tensors
from graft.images import render
from graft.model import build_backbone, build_head, feature_width

bundle = Path(sys.argv[1])
manifest, samples = read_manifest(bundle), read_parity(bundle)
backbone = build_backbone(manifest.backbone)
head = build_head(feature_width(backbone), manifest.hidden, len(manifest.class_names), seed=1)
model = torch.nn.ModuleDict({"backbone": backbone, "head": head})
model.load_state_dict({name: torch.from_numpy(value) for name, value in read_tensors(bundle).items()})
model.eval()
worst = 0.0
for sample in samples:
    pixels = torch.from_numpy(render(sample.data, manifest.input).pixels)
    images = ((pixels / 255 - torch.tensor(manifest.input.mean)) / torch.tensor(manifest.input.std)).permute(2, 0, 1)
    with torch.no_grad():
        logits = head(backbone(images[None]))[0]
    worst = max(worst, float(np.abs(logits.numpy() - sample.logits).max()))
print(len(samples), worst)
"""
PREDICTOR = """
import sys
import numpy as np
import graft
from graft.artifacts import read_parity
from pathlib import Path

model = graft.load(sys.argv[1])
samples = read_parity(Path(sys.argv[1]))
logits = model.logits([sample.data for sample in samples])
print(len(samples), float(np.abs(logits - np.stack([sample.logits for sample in samples])).max()))
"""
FORBIDDEN = ("pytorch_lightning", "lightning", "lightning_fabric", "hydra", "omegaconf", "openvino", "torchmetrics")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("photos"), train=16, valid=7, test=2)


@pytest.fixture(scope="module")
def bundle(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run whose input is not the default in anything."""
    shape = ("model.fit=crop", "model.resize=72", "model.mean=[0.4,0.5,0.6]", "model.std=[0.2,0.3,0.25]")
    until_it_knows_them = ("trainer.max_epochs=20", "trainer.patience=null")
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    return run(tiny(photos, run_dir, *shape, *until_it_knows_them)).run_dir / "bundle"


def copy(bundle: Path, to: Path) -> Path:
    for file in sorted(path for path in bundle.rglob("*") if path.is_file()):
        target = to / file.relative_to(bundle)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return to


@pytest.mark.parametrize("program", [ALONE, PREDICTOR], ids=["by hand", "graft.load"])
def test_a_fresh_process_with_only_the_bundle_gives_the_same_logits(bundle: Path, tmp_path: Path, program: str) -> None:
    moved = copy(bundle, tmp_path / "elsewhere")
    shown = f"\nprint(*[name for name in {FORBIDDEN} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program + shown, str(moved)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    figures, imported = done.stdout.split("\n")[:2]
    count, worst = figures.split()
    assert int(count) == 16
    assert float(worst) <= 1e-4
    assert imported == ""
    assert done.stderr == ""


def test_parity_samples_are_spread_over_the_classes_and_their_logits_differ(bundle: Path) -> None:
    samples = read_parity(bundle)
    assert len({sample.data for sample in samples}) == 16
    logits = np.stack([sample.logits for sample in samples])
    assert logits.dtype == np.float32
    assert logits.shape == (16, 3)
    assert logits.std(axis=0).min() > 1e-2
    assert set(logits.argmax(1)) == {0, 1, 2}


def test_load_answers_for_a_path_and_for_bytes(bundle: Path, photos: Path) -> None:
    model = graft.load(str(bundle))
    right = 0
    for path in sorted((photos / "test").rglob("*.*")):
        guesses = model(path)
        assert guesses == model(str(path)) == model(path.read_bytes())
        assert sum(guess.probability for guess in guesses) == pytest.approx(1, abs=1e-5)
        assert [guess.probability for guess in guesses] == sorted((g.probability for g in guesses), reverse=True)
        assert all(model.manifest.class_names[guess.index] == guess.label for guess in guesses)
        right += guesses[0].label == path.parent.name
    assert right >= 5  # of 6
    assert len(model(path, top_k=2)) == 2


def test_probabilities_are_calibrated_by_the_stored_temperature(bundle: Path, tmp_path: Path) -> None:
    moved = copy(bundle, tmp_path)
    content = json.loads((moved / "manifest.json").read_text())
    (moved / "manifest.json").write_text(json.dumps({**content, "temperature": 2.0}))
    sample = read_parity(moved)[0]
    exponents = np.exp(sample.logits.astype(np.float64) / 2)
    found = {guess.index: guess.probability for guess in graft.load(moved)(sample.data)}
    assert found == pytest.approx(dict(enumerate(exponents / exponents.sum())), abs=1e-4)


def test_the_manifest_tells_what_the_model_is(bundle: Path, photos: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.class_names == ("class_0", "class_1", "class_2")
    assert manifest.input == InputSpec(64, 72, "crop", (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    assert (manifest.backbone, manifest.hidden, manifest.weights) == ("squeezenet1_1", 32, "none")
    assert manifest.weights_fingerprint == fingerprint(build_backbone("squeezenet1_1", seed=0))
    assert manifest.trained_part == "the head"
    assert manifest.feature_precision == "fp32"
    assert manifest.data["root"] == str(photos)
    assert manifest.data["photos"] == {"train": 48, "valid": 21, "test": 6}
    assert set(manifest.data["classes"]) == {"train", "valid"}
    metrics = json.loads((bundle.parent / "metrics.json").read_text())
    assert manifest.metrics == {name: value for name, value in metrics.items() if not name.startswith("time/")}
    assert manifest.model_id == json.loads((bundle.parent / "run.json").read_text())["id"]
    assert not manifest.toy
    assert sorted(path.name for path in bundle.iterdir()) == [
        "README.md",
        "manifest.json",
        "model.safetensors",
        "novelty.safetensors",
        "parity",
    ]


def test_the_tensors_are_the_backbone_and_the_head(bundle: Path) -> None:
    tensors = load_file(bundle / "model.safetensors")
    expected = Classifier("squeezenet1_1", 3, hidden=32).state_dict()
    assert set(tensors) == set(expected)
    assert all(tensors[name].shape == tuple(value.shape) for name, value in expected.items())
    assert any(not np.array_equal(tensors[name], value) for name, value in expected.items() if "head" in name)


def damage(bundle: Path, kind: str) -> None:
    weights, manifest = bundle / "model.safetensors", bundle / "manifest.json"
    content = json.loads(manifest.read_text())
    if kind == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif kind == "no weights":
        weights.unlink()
    elif kind == "weights of another model":
        save_file({name: value for name, value in load_file(weights).items() if "backbone" in name}, weights)
    elif kind == "weights of other shapes":
        manifest.write_text(json.dumps({**content, "hidden": 33}))
    elif kind == "truncated manifest":
        manifest.write_text(manifest.read_text()[:-200])
    elif kind == "foreign manifest":
        manifest.write_text('{"name": "left-pad", "version": "1.3.0"}')
    elif kind == "unknown backbone":
        manifest.write_text(json.dumps({**content, "backbone": "resnet5"}))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated weights", r"model.safetensors cannot be read"),
        ("no weights", r"model.safetensors cannot be read"),
        (
            "weights of another model",
            r"model.safetensors is not what manifest.json says, a squeezenet1_1 with 3 classes",
        ),
        ("weights of other shapes", r"model.safetensors is not what manifest.json says"),
        ("truncated manifest", r"is no model bundle: manifest.json cannot be read"),
        ("foreign manifest", r"manifest.json: version 1.3.0; accepted is 1"),
        ("unknown backbone", r"model.backbone=resnet5: not a torchvision classification model"),
    ],
)
def test_a_damaged_or_foreign_bundle_is_one_clear_error(bundle: Path, tmp_path: Path, kind: str, message: str) -> None:
    moved = copy(bundle, tmp_path)
    damage(moved, kind)
    with pytest.raises(GraftError, match=message) as refused:
        graft.load(moved)
    assert len(str(refused.value).splitlines()) == 1


def test_a_folder_without_a_bundle_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=rf"{tmp_path}/x is no model bundle"):
        graft.load(tmp_path / "x")


@pytest.mark.parametrize("valid", [2, 16, 17, 40])
def test_parity_samples_are_sixteen_or_all_there_are(photos: Path, valid: int) -> None:
    files = sorted((photos / "train").rglob("*.*"))[:1] * valid
    names = tuple(str(f.relative_to(photos / "train")) for f in files)
    split = Split("valid", LocalStore(photos), "train", names, ("class_0",))
    classifier = Classifier("squeezenet1_1", 2, hidden=4).eval()
    assert len(parity_samples(classifier, InputSpec(64, 64), split)) == min(valid, 16)


def test_a_large_photo_is_stored_as_its_pixels_and_still_gives_its_logits(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    valid = scan(LocalStore(photos)).valid
    originals = {valid.read(index) for index in range(len(valid))}
    sizes = sorted(len(data) for data in originals)
    monkeypatch.setattr(graft.bundle, "PARITY_BYTES", sizes[len(sizes) // 2])
    manifest = read_manifest(bundle)
    classifier = Classifier.load_from_checkpoint(bundle.parent / "checkpoints" / "best.ckpt", weights_only=True).eval()
    save_bundle(tmp_path, classifier, manifest, valid)
    samples = read_parity(tmp_path)
    stored = [sample.data for sample in samples if sample.data not in originals]
    assert 0 < len(stored) < len(samples)
    assert all(data.startswith(b"\x89PNG") for data in stored)
    logits = graft.load(tmp_path).logits([sample.data for sample in samples])
    np.testing.assert_allclose(logits, np.stack([sample.logits for sample in samples]), atol=1e-4, rtol=0)


def card(bundle: Path, **changes: object) -> str:
    manifest: Manifest = replace(read_manifest(bundle), **changes)  # type: ignore[arg-type]
    return model_card(manifest)


def test_the_card_shows_the_figures_and_how_to_use_the_model(bundle: Path) -> None:
    text = (bundle / "README.md").read_text()
    metrics = read_manifest(bundle).metrics
    assert text == card(bundle)
    assert text.startswith("# squeezenet1_1 with a two-layer head, 3 classes\n")
    for split in ("valid", "test"):
        low, high = metrics[f"{split}/accuracy_low"], metrics[f"{split}/accuracy_high"]
        assert f"| {split} | {metrics[f'{split}/accuracy']:.4f} | {low:.4f} .. {high:.4f} |" in text
    assert "95 % interval (Wilson)" in text
    assert "short side to 72, centre crop 64 x 64, normalised by mean (0.4, 0.5, 0.6) and std (0.2, 0.3, 0.25)" in text
    assert "class_0, class_1, class_2 (all of them in `manifest.json`)" in text
    assert "toy" not in text
    assert 'graft.load("PATH_OF_THIS_FOLDER")' in text


def test_the_card_without_a_test_split_has_no_figure_of_it(bundle: Path) -> None:
    metrics = {name: value for name, value in read_manifest(bundle).metrics.items() if not name.startswith("test/")}
    assert "| test |" not in card(bundle, metrics=metrics)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("none", "none were used; the backbone is random."),
        ("imagenet1k_v2", "torchvision's, BSD-3-Clause; trained on ImageNet, whose photos are for research only."),
        ("file.pth", "not known to graft; ask whoever made the file."),
    ],
)
def test_the_card_tells_what_is_known_of_the_licences(bundle: Path, weights: str, said: str) -> None:
    text = card(bundle, weights=weights)
    assert f"- Backbone weights: {said}" in text
    assert "- Code: Apache-2.0." in text
    assert "- Data: not known to graft; ask whoever made the photos" in text


def test_the_card_of_a_toy_says_so(bundle: Path) -> None:
    assert "These are toy figures" in card(bundle, toy=True)
