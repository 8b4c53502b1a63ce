"""model.py against torchvision itself, and the exact text of what it refuses."""

from __future__ import annotations

import argparse
import copy
import re
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision import models

from graft.errors import ConfigError, WeightsError
from graft.inputs import IMAGENET_MEAN, IMAGENET_STD, InputSpec
from graft.model import (
    build_backbone,
    build_head,
    feature_width,
    fingerprint,
    freeze,
    input_spec,
    load_weights,
    set_modes,
)
from tests.conftest import REAL_DATA

SMALL = "shufflenet_v2_x0_5"  # the quickest to build and to save
FILES = "the path of a .pth, .pt or .safetensors file"

# One of every family of torchvision: features, side of the test image.
FAMILIES = {
    "alexnet": (4096, 64),
    "convnext_tiny": (768, 64),
    "densenet121": (1024, 64),
    "efficientnet_b0": (1280, 64),
    "googlenet": (1024, 64),
    "inception_v3": (2048, 96),
    "maxvit_t": (512, 224),
    "mnasnet0_5": (1280, 64),
    "mobilenet_v2": (1280, 64),
    "mobilenet_v3_small": (1024, 64),
    "regnet_x_400mf": (400, 64),
    "regnet_y_400mf": (440, 64),
    "resnet50": (2048, 64),
    SMALL: (1024, 64),
    "squeezenet1_1": (512, 64),
    "swin_t": (768, 64),
    "vit_b_32": (768, 224),
}


def torchvision_model(name: str, seed: int = 0) -> nn.Module:
    """Torchvision's own classifier, as its global seed makes it, in eval mode."""
    inception = name in ("googlenet", "inception_v3")
    options = {"init_weights": False, "aux_logits": False} if inception else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = models.get_model(name, weights=None, **options)
    return model.eval()


def classifier_input(model: nn.Module, images: Tensor) -> Tensor:
    """What torchvision's last layer receives, seen by a hook; averaged over positions in squeezenet."""
    seen: list[Tensor] = []
    last = [part for part in model.modules() if isinstance(part, nn.Linear | nn.Conv2d)][-1]
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model(images)
    return seen[0].relu().mean((2, 3)) if seen[0].ndim == 4 else seen[0]


def images(size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def features(backbone: nn.Module, size: int) -> Tensor:
    with torch.inference_mode():
        result: Tensor = backbone(images(size))
    return result


def save(state: object, path: Path) -> str:
    torch.save(state, path)
    return str(path)


# -- backbones


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_what_torchvisions_last_layer_receives(name: str) -> None:
    width, size = FAMILIES[name]
    backbone = build_backbone(name, seed=3)
    found = features(backbone, size)
    assert found.shape == (2, width)
    assert found.dtype == torch.float32
    assert feature_width(backbone) == width
    assert found.count_nonzero() > 0
    torch.testing.assert_close(found, classifier_input(torchvision_model(name, seed=3), images(size)))


def test_vgg_gives_its_second_hidden_layer() -> None:
    with torch.device("meta"):  # 2 s to initialise; its layout is alexnet's
        backbone = build_backbone("vgg11")
        assert backbone(torch.empty(2, 3, 224, 224)).shape == (2, 4096)
    assert feature_width(backbone) == 4096


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", SMALL])
def test_a_backbone_also_runs_in_train_mode(name: str) -> None:
    width, size = FAMILIES[name]
    backbone = build_backbone(name).train()
    assert backbone(images(size)).shape == (2, width)


def test_no_family_of_torchvision_is_left_out() -> None:
    def family(name: str) -> str:
        found = re.match("[a-z]+", name)
        return found.group() if found else name

    tried = {family(name) for name in FAMILIES} | {"vgg", "resnext", "wide"}  # the last two are ResNets
    assert {family(name) for name in models.list_models(module=models)} == tried


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    prints = [fingerprint(build_backbone(SMALL, seed=seed)) for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]
    assert torch.equal(before, torch.get_rng_state())


def test_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as error:
        build_backbone("resnet51")
    assert str(error.value) == (
        "model.backbone=resnet51: not a torchvision classification model; "
        "nearest: resnet50, resnet18, resnet152 (of 80)"
    )
    with pytest.raises(ConfigError, match=r"nearest: resnet50"):
        input_spec("ResNet50", "none")


def test_detection_and_quantized_models_are_not_backbones() -> None:
    for name in ("fasterrcnn_resnet50_fpn", "quantized_resnet50", "deeplabv3_resnet50", "r3d_18", "raft_small"):
        with pytest.raises(ConfigError, match=f"model.backbone={name}: not a torchvision classification model"):
            build_backbone(name)


# -- head


def test_head_of_the_original_has_its_1117317_parameters() -> None:
    head = build_head(2048, 512, 133, seed=0)
    assert sum(parameter.numel() for parameter in head.parameters()) == 1_117_317
    assert [type(part) for part in head] == [nn.Linear, nn.ReLU, nn.Linear]


def test_head_is_torchs_own_initialisation_from_the_seed_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    head = build_head(8, 4, 3, seed=7)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(7)
    assert fingerprint(head) == fingerprint(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)))
    assert fingerprint(head) != fingerprint(build_head(8, 4, 3, seed=8))


# -- files


def test_a_whole_models_file_gives_its_features(tmp_path: Path) -> None:
    reference = torchvision_model("mobilenet_v3_small", seed=5)
    path = save(reference.state_dict(), tmp_path / "w.pth")
    before = torch.get_rng_state()
    backbone = build_backbone("mobilenet_v3_small", weights=path)
    assert torch.equal(before, torch.get_rng_state())
    assert not backbone.training
    torch.testing.assert_close(features(backbone, 64), classifier_input(reference, images(64)), rtol=0, atol=0)


def wrapped(state: dict[str, Tensor]) -> dict[str, Any]:
    return {"state_dict": state, "epoch": 3}


def parallel(state: dict[str, Tensor]) -> dict[str, Any]:
    return {"model": {f"module.{key}": value for key, value in state.items()}}


def without_classifier(state: dict[str, Tensor]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def seven_classes(state: dict[str, Tensor]) -> dict[str, Any]:
    return {**state, "fc.weight": torch.zeros(7, 1024), "fc.bias": torch.zeros(7)}


def two_layers(state: dict[str, Tensor]) -> dict[str, Any]:
    return {**without_classifier(state), "fc.0.weight": torch.zeros(5, 1024), "fc.2.weight": torch.zeros(7, 5)}


def before_torch_0_4_1(state: dict[str, Tensor]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    "form", [dict, wrapped, parallel, without_classifier, seven_classes, two_layers, before_torch_0_4_1]
)
@pytest.mark.parametrize("kind", ["pth", "legacy.pth", "safetensors"])
def test_common_forms_of_a_file_load_alike(
    form: Callable[[dict[str, Tensor]], dict[str, Any]], kind: str, tmp_path: Path
) -> None:
    state = form(torchvision_model(SMALL, seed=2).state_dict())
    path = tmp_path / f"w.{kind}"
    if kind == "safetensors":  # flat, so what a wrapper holds
        safetensors.torch.save_file(state.get("state_dict", state.get("model", state)), path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pth")
    assert fingerprint(build_backbone(SMALL, weights=str(path))) == fingerprint(build_backbone(SMALL, seed=2))


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    state = torchvision_model(SMALL).state_dict()
    path = save({key: t.half() if t.is_floating_point() else t for key, t in state.items()}, tmp_path / "w.pt")
    backbone = build_backbone(SMALL, weights=path)
    weight = backbone.state_dict()["conv1.0.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["conv1.0.weight"].half().float())


def test_side_classifiers_of_googlenet_are_left_out(tmp_path: Path) -> None:
    whole = models.googlenet(init_weights=False, aux_logits=True).eval()
    backbone = build_backbone("googlenet", weights=save(whole.state_dict(), tmp_path / "w.pth"))
    torch.testing.assert_close(features(backbone, 64), classifier_input(whole, images(64)))


def test_tables_made_by_constructors_survive_loading(tmp_path: Path) -> None:
    reference = torchvision_model("regnet_x_400mf", seed=4)
    backbone = build_backbone("regnet_x_400mf", weights=save(reference.state_dict(), tmp_path / "w.pth"))
    torch.testing.assert_close(features(backbone, 64), classifier_input(reference, images(64)))
    swin = models.SwinTransformer([4, 4], 8, [2], [1], [7, 7])
    path = tmp_path / "swin.safetensors"
    safetensors.torch.save_file(swin.state_dict(), path)
    other = models.SwinTransformer([4, 4], 8, [2], [1], [7, 7])
    load_weights(other, path)
    assert fingerprint(other) == fingerprint(swin)


def test_names_of_earlier_torchvision_releases_are_understood(tmp_path: Path) -> None:
    dense = torchvision_model("densenet121", seed=6)
    old: dict[str, Tensor] = dict(dense.state_dict())
    for key in list(old):
        name = key
        for part in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in key:
                name = name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        old[name] = old.pop(key)
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    backbone = build_backbone("densenet121", weights=save(old, tmp_path / "dense.pth"))
    assert fingerprint(backbone) == fingerprint(build_backbone("densenet121", seed=6))

    vit, other = (models.VisionTransformer(32, 16, 1, 2, 8, 16) for _ in range(2))
    renames = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
    old = {}
    for key, value in vit.state_dict().items():
        new = next((key.replace(a, b) for a, b in renames.items() if a in key), key)
        old[new] = value
    assert "encoder.layers.encoder_layer_0.mlp.linear_2.bias" in old
    load_weights(other, save(old, tmp_path / "vit.pth"))
    assert fingerprint(other) == fingerprint(vit)


def test_mnasnet_needs_no_version_stamp(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(torchvision_model("mnasnet0_5", seed=9).state_dict(), path)
    backbone = build_backbone("mnasnet0_5", weights=str(path))
    assert fingerprint(backbone) == fingerprint(build_backbone("mnasnet0_5", seed=9))


# -- wrong files


def refused(name: str, weights: str) -> str:
    with pytest.raises(WeightsError) as error:
        build_backbone(name, weights=weights)
    return str(error.value)


def test_another_models_file_names_five_keys_of_each_kind_and_counts_them(tmp_path: Path) -> None:
    path = save(torchvision_model(SMALL).state_dict(), tmp_path / "w.pth")
    message = refused("resnet18", path)
    assert message.startswith(
        f"model.weights={path}: 100 keys missing (conv1.weight, bn1.weight, bn1.bias, bn1.running_mean, "
        "bn1.running_var, ...); 336 keys unexpected (conv1.0.weight, conv1.1.weight, conv1.1.bias, "
        "conv1.1.running_mean, conv1.1.running_var, ...)"
    )
    assert message.endswith("; accepted: the state_dict of torchvision's resnet18, with or without its classifier")


def test_partial_misshapen_and_broken_tensors_are_named(tmp_path: Path) -> None:
    state = dict(torchvision_model(SMALL).state_dict())
    del state["conv5.0.weight"]
    state["conv1.0.weight"] = torch.zeros(24, 3, 7, 7)
    state["conv1.1.bias"] = torch.full((24,), torch.nan)
    state["conv1.1.weight"] = torch.ones(24, dtype=torch.int8)
    path = save(state, tmp_path / "w.pth")
    assert refused(SMALL, path) == (
        f"model.weights={path}: 1 key missing (conv5.0.weight); 2 keys of another form (conv1.0.weight "
        "[24, 3, 7, 7] in place of [24, 3, 3, 3], conv1.1.weight integer [24] in place of [24]); "
        "1 key not finite (conv1.1.bias); accepted: the state_dict of torchvision's shufflenet_v2_x0_5, "
        "with or without its classifier"
    )


def test_code_is_never_run_and_named(tmp_path: Path) -> None:
    accepted = "accepted: tensors alone, written by torch.save(model.state_dict(), PATH) or as .safetensors"
    path = save({"model": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "w.pth")
    assert refused(SMALL, path) == (
        f"model.weights={path}: cannot be read as weights (it holds code, argparse.Namespace, "
        f"which is never run); {accepted}"
    )


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and no more", b"\x80\x02}q\x00("])
def test_damaged_files_are_one_sentence(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert refused(SMALL, str(tmp_path / name)) == (
        f"model.weights={tmp_path / name}: cannot be read as weights (damaged, or not such a file); accepted: "
        "tensors alone, written by torch.save(model.state_dict(), PATH) or as .safetensors"
    )


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    save(torchvision_model(SMALL).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cannot be read as weights (damaged" in refused(SMALL, str(path))


@pytest.mark.parametrize(("content", "kind"), [([torch.zeros(2)], "list"), ({"a": 1}, "dict")])
def test_files_of_something_else_are_refused(content: object, kind: str, tmp_path: Path) -> None:
    path = save(content, tmp_path / "w.pth")
    assert refused(SMALL, path) == f"model.weights={path}: holds a {kind}; accepted: a dict of names to tensors"


def test_an_absent_file_names_the_nearest_and_the_words(tmp_path: Path) -> None:
    (tmp_path / "resnet18.pth").touch()
    accepted = f"accepted: imagenet1k_v1, none, or {FILES}"
    path = tmp_path / "resnet81.pth"
    nearest = tmp_path / "resnet18.pth"
    assert refused("resnet18", str(path)) == f"model.weights={path}: no such file; nearest: {nearest}; {accepted}"
    assert refused("resnet18", "imagenet_v1") == (
        f"model.weights=imagenet_v1: no such file; nearest: imagenet1k_v1; {accepted}"
    )
    assert refused("resnet18", str(tmp_path)) == f"model.weights={tmp_path}: a folder; {accepted}"
    assert refused("resnet18", "/no/where.pth") == f"model.weights=/no/where.pth: no such file; {accepted}"


def test_load_weights_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as error:
        load_weights(nn.Linear(2, 2), tmp_path / "w.pth")
    assert str(error.value) == f"{tmp_path / 'w.pth'}: no such file; accepted: {FILES}"
    path = save({"weight": torch.zeros(2, 2)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as error:
        load_weights(nn.Linear(2, 2), path)
    assert str(error.value) == f"{path}: 1 key missing (bias); accepted: the state_dict of Linear"


# -- named weights


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch.hub folder, and a network that answers nothing."""

    def offline(url: str, *_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("word", ["imagenet1k_v1", "IMAGENET1K_V1"])
def test_a_file_in_torch_hubs_folder_is_used_without_a_network(word: str, hub: Path) -> None:
    hub.mkdir(parents=True)
    save(torchvision_model(SMALL, seed=8).state_dict(), hub / "shufflenetv2_x0.5-f707e7126e.pth")
    assert fingerprint(build_backbone(SMALL, weights=word)) == fingerprint(build_backbone(SMALL, seed=8))


def test_a_download_lands_in_torch_hubs_folder(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision_model(SMALL, seed=8).state_dict()
    asked: list[tuple[str, str]] = []

    def download(url: str, path: str, *, hash_prefix: str, progress: bool) -> None:
        asked.append((url.rpartition("/")[2], hash_prefix))
        torch.save(state, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        build_backbone(SMALL, weights="imagenet1k_v1")
    assert asked == [("shufflenetv2_x0.5-f707e7126e.pth", "f707e7126e")]
    assert [path.name for path in hub.iterdir()] == ["shufflenetv2_x0.5-f707e7126e.pth"]


def test_a_failed_download_names_the_file_and_the_ways(hub: Path) -> None:
    assert refused("resnet50", "imagenet1k_v1") == (
        "model.weights=imagenet1k_v1: resnet50-0676ba61.pth could not be downloaded (Name or service not known); "
        f"accepted without a network: model.weights=PATH of that file, the file in {hub}, or model.weights=none"
    )


def test_a_wrong_file_in_torch_hubs_folder_is_named(hub: Path) -> None:
    hub.mkdir(parents=True)
    path = hub / "resnet18-f37072fd.pth"
    path.write_bytes(b"<html>")
    assert refused("resnet18", "imagenet1k_v1").startswith(
        f"model.weights=imagenet1k_v1 ({path}): cannot be read as weights"
    )


def test_weights_that_a_model_does_not_have_are_a_config_error() -> None:
    for make in (build_backbone, input_spec):
        with pytest.raises(ConfigError) as error:
            make("resnet18", weights="imagenet1k_v2")
        assert str(error.value) == (
            f"model.weights=imagenet1k_v2: resnet18 has none of that name; accepted: imagenet1k_v1, none, or {FILES}"
        )


# -- input


@pytest.mark.parametrize(
    ("backbone", "weights", "image_size", "resize"),
    [
        ("resnet50", "imagenet1k_v1", 224, 256),
        ("resnet50", "imagenet1k_v2", 224, 232),
        ("resnet50", "IMAGENET1K_V2", 224, 232),
        ("efficientnet_b1", "imagenet1k_v1", 240, 256),
        ("swin_v2_t", "imagenet1k_v1", 256, 260),
        ("resnet50", "none", 224, 224),
        ("resnet50", "some/file.pth", 224, 224),
    ],
)
def test_input_is_the_recipe_of_the_weights(backbone: str, weights: str, image_size: int, resize: int) -> None:
    assert input_spec(backbone, weights) == InputSpec(image_size, resize, "crop", IMAGENET_MEAN, IMAGENET_STD)


def test_image_size_scales_the_recipes_resize_but_is_a_files() -> None:
    assert input_spec("resnet50", "imagenet1k_v1", image_size=448).resize == 512
    assert input_spec("resnet50", "imagenet1k_v2", image_size=160).resize == 166  # 165.7
    assert input_spec("resnet50", "w.pth", image_size=160) == InputSpec(160, 160)
    assert input_spec("resnet50", "w.pth", image_size=160, resize=200) == InputSpec(160, 200)
    assert input_spec("resnet50", "imagenet1k_v1", resize=224) == InputSpec(224, 224)


def test_the_originals_input_can_be_asked_for() -> None:
    spec = input_spec("resnet50", "imagenet1k_v1", fit="squash", mean=[0, 0, 0], std=[1, 1, 1])
    assert (spec.fit, spec.mean, spec.std) == ("squash", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_models_that_rescale_their_input_get_that_scale_from_the_spec(name: str) -> None:
    """Pixels through our mean and std equal ImageNet's followed by torchvision's transform_input."""
    pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torchvisions = models.get_model(name, weights=None, init_weights=False, transform_input=True)
    mean, std = (torch.tensor(three)[:, None, None] for three in (IMAGENET_MEAN, IMAGENET_STD))
    expected = torchvisions._transform_input((pixels - mean) / std)
    for weights in ("imagenet1k_v1", "file.pth"):
        spec = input_spec(name, weights)
        mean, std = (torch.tensor(three)[:, None, None] for three in (spec.mean, spec.std))
        torch.testing.assert_close((pixels - mean) / std, expected)


@pytest.mark.parametrize(
    ("backbone", "given", "message"),
    [
        ("vit_b_32", {"image_size": 256}, "model.image_size=256: vit_b_32 accepts 224 only"),
        ("maxvit_t", {"image_size": 448}, "model.image_size=448: maxvit_t accepts 224 only"),
        ("resnet50", {"mean": [0.5]}, "model.mean=[0.5]: accepted: 3 numbers, one per channel"),
        ("resnet50", {"std": [1, 0, 1]}, "model.std=[1, 0, 1]: accepted: 3 numbers above 0, one per channel"),
    ],
)
def test_input_that_does_not_fit_is_refused(backbone: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        input_spec(backbone, "none", **given)
    assert str(error.value) == message


def test_a_crop_larger_than_the_resize_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.resize=200"):
        input_spec("resnet50", "none", resize=200)


# -- freezing


def trainable(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def test_freeze_leaves_the_named_part_trainable() -> None:
    backbone = build_backbone("resnet18")
    counts = {"head": 0, "layer4": 8_393_728, "layer4.1": 4_720_640, "all": 11_176_512}
    for unfreeze, count in counts.items():
        freeze(backbone, unfreeze)
        assert trainable(backbone) == count, unfreeze


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Top-level parts whose BatchNorm statistics differ."""
    return {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("unfreeze", "expected"),
    [
        ("head", set()),
        ("layer4", {"layer4"}),
        ("all", {"bn1", "layer1", "layer2", "layer3", "layer4"}),
    ],
)
def test_statistics_of_frozen_batch_norms_do_not_move(unfreeze: str, expected: set[str]) -> None:
    backbone = build_backbone("resnet18")
    freeze(backbone, unfreeze)
    backbone.train()  # as a parent's train() does
    set_modes(backbone, unfreeze)
    before = statistics(backbone)
    backbone(images(64))
    assert moved(before, statistics(backbone)) == expected


def test_without_set_modes_they_would_move() -> None:
    backbone = build_backbone("resnet18").train()
    freeze(backbone, "head")
    before = statistics(backbone)
    backbone(images(64))
    assert len(moved(before, statistics(backbone))) == 5


def test_unfrozen_dropout_works_and_frozen_dropout_does_not() -> None:
    backbone = build_backbone("mobilenet_v3_small")
    dropout = next(part for part in backbone.modules() if isinstance(part, nn.Dropout))
    modes = []
    for unfreeze in ("head", "all", "features.12"):
        set_modes(backbone, unfreeze)
        modes.append(dropout.training)
    assert modes == [False, True, False]
    assert [part.training for part in backbone.get_submodule("features").children()] == [False] * 12 + [True]


@pytest.mark.parametrize("change", [freeze, set_modes])
@pytest.mark.parametrize(
    ("name", "unfreeze", "accepted"),
    [
        ("mobilenet_v2", "layer4", "features, features.17, features.18"),
        ("resnet18", "layer5", "conv1, bn1, layer1, layer2, layer3, layer4, layer4.0, layer4.1"),
        ("resnet18", "avgpool", "conv1, bn1, layer1, layer2, layer3, layer4, layer4.0, layer4.1"),
        ("resnet18", "", "conv1, bn1, layer1, layer2, layer3, layer4, layer4.0, layer4.1"),
    ],
)
def test_an_absent_part_is_answered_with_the_backbones_own(
    change: Callable[[nn.Module, str], None], name: str, unfreeze: str, accepted: str
) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
    with pytest.raises(ConfigError) as error:
        change(backbone, unfreeze)
    assert str(error.value) == (
        f"model.unfreeze={unfreeze}: {name} has no part of that name with weights; accepted: head, all, {accepted}"
    )


def test_the_last_layers_of_a_transformer_are_offered() -> None:
    with torch.device("meta"):
        backbone = build_backbone("vit_b_16")
    with pytest.raises(ConfigError, match=r"encoder\.layers\.encoder_layer_11$"):
        freeze(backbone, "layer4")


# -- fingerprint


def test_fingerprint_is_pinned() -> None:
    """Feature caches on people's disks are keyed by it: another value computes them all again."""
    layer = nn.BatchNorm1d(3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
    assert fingerprint(layer) == "660d0b2e1b84eaacaaa8d12b8098a832"


def test_fingerprint_sees_every_value_name_and_shape() -> None:
    base = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    changed = [copy.deepcopy(base) for _ in range(3)]
    with torch.no_grad():
        changed[0].get_parameter("0.weight")[3, 1, 2, 2] += 1e-6
        changed[1].get_buffer("1.running_var")[3] = 2
    changed[2] = nn.Sequential(base[0], nn.Identity(), base[1])
    reshaped = copy.deepcopy(base)
    reshaped[0].weight = nn.Parameter(base.get_parameter("0.weight").reshape(4, 2, 9, 1))
    prints = [fingerprint(module) for module in (base, *changed, reshaped)]
    assert len(set(prints)) == 5


def test_fingerprint_ignores_memory_format_and_takes_bfloat16() -> None:
    base = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    last = copy.deepcopy(base).to(memory_format=torch.channels_last)
    assert last.get_parameter("0.weight").is_contiguous(memory_format=torch.channels_last)
    assert not last.get_parameter("0.weight").is_contiguous()
    assert fingerprint(last) == fingerprint(base)
    assert fingerprint(copy.deepcopy(base).bfloat16()) != fingerprint(base)


# -- real weights


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "file"), [("mobilenet_v2", "mobilenet_v2"), ("resnet50", "resnet50_partial")])
def test_real_files_give_the_features_of_a_strict_load(name: str, file: str) -> None:
    path = REAL_DATA / "weights" / f"{file}.pth"
    reference = torchvision_model(name)
    reference.load_state_dict(torch.load(path, weights_only=True))
    found = features(build_backbone(name, weights=str(path)), 64)
    torch.testing.assert_close(found, classifier_input(reference, images(64)), rtol=0, atol=0)
    assert found.std() > 0.1


@pytest.mark.real_data
def test_a_real_file_of_another_model_is_refused() -> None:
    message = refused("resnet18", str(REAL_DATA / "weights" / "mobilenet_v2.pth"))
    assert "100 keys missing (conv1.weight, " in message
