"""Backbone, head and what of them trains: plain `nn.Module`s, each with its own few functions.

A backbone is a torchvision classifier without its last layer. It keeps torchvision's part names
(`layer4`, `features.18`), so weights files, `model.unfreeze` and the bundle speak the same words.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.hub
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from graft.errors import ConfigError, WeightsError
from graft.inputs import InputSpec
from graft.weights import FILE_KINDS, NAMED_WEIGHTS, load, locate, named_weights

# Ported from TensorFlow, where pixels go to -1..1. torchvision mends that inside the network
# (transform_input), a flag that no weights file holds; here it stands in the InputSpec instead.
_MINUS_ONE_TO_ONE = ("googlenet", "inception_v3")
_ONE_SIZE_ONLY = ("vit_", "maxvit_")  # their position tables are made for one image size
_UNUSED_PARTS = ("aux1.", "aux2.", "AuxLogits.")  # side classifiers, used in training from scratch only


class Features(nn.Identity):
    """Takes the place of a backbone's last layer: its input, float32 [B, width], is the feature vector.

    Args:
        backbone: torchvision's name of the model around it.
        width: number of features.
    """

    def __init__(self, backbone: str, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.width = width

    def extra_repr(self) -> str:
        """What `print(backbone)` shows."""
        return f"{self.backbone}, width={self.width}"


def input_spec(
    backbone: str,
    weights: str,
    *,
    image_size: int | None = None,
    resize: int | None = None,
    fit: str = "crop",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> InputSpec:
    """What the backbone expects of an image: torchvision's recipe of named weights, else 224 pixels.

    Sizes are in pixels, mean and std of pixels in 0..1. An `image_size` without `resize` scales the
    recipe's resize with it (named weights), or is the resize (a file or none).

    Raises:
        ConfigError: an unknown backbone, weights that it does not have, or sizes that do not fit.
    """
    _check_name(backbone)
    expected = _expected_input(backbone, weights)
    size = image_size or expected.image_size
    if backbone.startswith(_ONE_SIZE_ONLY) and size != expected.image_size:
        raise ConfigError(f"model.image_size={size}: {backbone} accepts {expected.image_size} only")
    return InputSpec(
        image_size=size,
        resize=resize or round(size * expected.resize / expected.image_size),
        fit=fit,
        mean=expected.mean if mean is None else _triple("mean", mean),
        std=expected.std if std is None else _triple("std", std),
    )


def build_backbone(name: str, *, weights: str = "none", seed: int = 0) -> nn.Module:
    """A torchvision classifier without its last layer, in eval mode, on the CPU.

    It maps images, float32 [B, 3, H, W] normalised, to features, float32 [B, `feature_width`].

    Args:
        name: torchvision's name of a classification model.
        weights: imagenet1k_v1, imagenet1k_v2 (downloaded once into torch.hub's folder), none, or a file.
        seed: of torchvision's own initialisation, for `none`; the global generator stays as it was.

    Raises:
        ConfigError: an unknown name, or named weights that the model does not have.
        WeightsError: the file is absent, damaged, not downloadable or made for another model.
    """
    _check_name(name)
    if weights.lower() == "none":
        with _seeded(seed):
            return _without_classifier(name)
    path, source = locate(name, weights)
    with _EmptyOnMeta():
        backbone = _without_classifier(name)
    _allocate(backbone)
    _fill(backbone, path, source)
    return backbone


def feature_width(backbone: nn.Module) -> int:
    """D of the features [B, D] of a backbone from `build_backbone`."""
    return _features(backbone)[1].width


def build_head(width: int, hidden: int, num_classes: int, *, seed: int) -> nn.Sequential:
    """Two fully-connected layers: features [B, width] to logits [B, num_classes].

    The initialisation is torch's own, from `seed` alone; the global generator stays as it was.
    """
    with _seeded(seed):
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))


def freeze(backbone: nn.Module, unfreeze: str) -> None:
    """Lets gradients into the unfrozen part alone.

    Args:
        backbone: from `build_backbone`.
        unfreeze: "head" (nothing of the backbone), "all", or a part's name, such as layer4.

    Raises:
        ConfigError: the backbone has no such part; the message lists its own.
    """
    part = _unfrozen(backbone, unfreeze)
    backbone.requires_grad_(False)
    if part is not None:
        part.requires_grad_(True)


def set_modes(backbone: nn.Module, unfreeze: str) -> None:
    """Puts the unfrozen part into train mode and all else into eval mode, BatchNorm and dropout included.

    Without this a frozen BatchNorm's running statistics follow the training images: `requires_grad`
    has no say over them. Call it whenever something called `train()` on a parent.

    Raises:
        ConfigError: as `freeze`.
    """
    part = _unfrozen(backbone, unfreeze)
    backbone.eval()
    if part is not None:
        part.train()


def fingerprint(module: nn.Module) -> str:
    """128 bits, as 32 hex digits, of all parameters and buffers: names, types, shapes, values.

    Device and memory format (channels_last) do not matter.
    """
    digest = hashlib.blake2b(digest_size=16)
    for named in (module.named_parameters(), module.named_buffers()):
        for name, tensor in named:
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Fills all parameters and buffers of a module from a .pth, .pt or .safetensors file of tensors.

    Of a backbone's file the classifier is left out, whatever its number of classes.

    Raises:
        WeightsError: the file is absent, damaged, holds code, or its keys or shapes are another model's.
    """
    if not Path(path).is_file():
        raise WeightsError(f"{path}: no such file; accepted: {FILE_KINDS}")
    _fill(module, Path(path), str(path))


def _fill(module: nn.Module, path: Path, source: str) -> None:
    places = [(at, part) for at, part in module.named_modules() if isinstance(part, Features)]
    classifier = (*(f"{at}." for at, _ in places), *_UNUSED_PARTS) if places else ()
    kind = f"torchvision's {places[0][1].backbone}, with or without its classifier" if places else ""
    load(module, path, source, classifier=classifier, expected=kind or type(module).__name__)


def _check_name(name: str) -> None:
    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
        nearest = f"nearest: {', '.join(near)}" if near else f"for example: {', '.join(known[:3])}"
        raise ConfigError(f"model.backbone={name}: not a torchvision classification model; {nearest} (of {len(known)})")


def _expected_input(backbone: str, weights: str) -> InputSpec:
    spec = InputSpec()
    if weights.lower() in NAMED_WEIGHTS:
        recipe = named_weights(backbone, weights).transforms()
        spec = InputSpec(
            image_size=recipe.crop_size[0],
            resize=recipe.resize_size[0],
            mean=_triple("mean", recipe.mean),
            std=_triple("std", recipe.std),
        )
    if backbone in _MINUS_ONE_TO_ONE:
        spec = dataclasses.replace(spec, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return spec


def _triple(key: str, values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) != 3 or (key == "std" and min(values) <= 0):
        least = " above 0" if key == "std" else ""
        raise ConfigError(f"model.{key}={list(values)}: accepted: 3 numbers{least}, one per channel")
    red, green, blue = (float(value) for value in values)
    return red, green, blue


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, the CPU's generator starts at `seed`; afterwards it is as it was. No GPU is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class _EmptyOnMeta(TorchFunctionMode):
    """Inside, `torch.empty` allocates nothing, and initialising what it made does nothing.

    A file replaces those parameters, and drawing them first costs up to 2 s (vgg). Not all on
    `torch.device("meta")`: regnet computes its widths with tensors, and tables that constructors
    make (swin's relative positions) would be lost.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def _allocate(module: nn.Module) -> None:
    """Gives the parameters made inside `_EmptyOnMeta` their memory, with whatever is in it."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.is_meta:
                setattr(part, name, nn.Parameter(torch.empty_like(parameter, device="cpu")))


def _without_classifier(name: str) -> nn.Module:
    # init_weights=False: torchvision's other way lets activations grow to 1e10 (inception_v3).
    options = {"aux_logits": False, "init_weights": False} if name in _MINUS_ONE_TO_ONE else {}
    backbone: nn.Module = models.get_model(name, weights=None, **options)
    # A Conv2d in squeezenet, where pooling follows the classifier.
    layers = [(at, part) for at, part in backbone.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    at, last = layers[-1]
    width = last.in_features if isinstance(last, nn.Linear) else last.in_channels
    backbone.set_submodule(at, Features(name, width))
    return backbone.eval()


def _features(backbone: nn.Module) -> tuple[str, Features]:
    return next((at, part) for at, part in backbone.named_modules() if isinstance(part, Features))


def _unfrozen(backbone: nn.Module, unfreeze: str) -> nn.Module | None:
    if unfreeze == "head":
        return None
    if unfreeze == "all":
        return backbone
    part: nn.Module | None = dict(backbone.named_modules()).get(unfreeze)
    if not unfreeze or part is None or not _size(part):
        name = _features(backbone)[1].backbone
        accepted = ", ".join(["head", "all", *_parts(backbone)])
        raise ConfigError(
            f"model.unfreeze={unfreeze}: {name} has no part of that name with weights; accepted: {accepted}"
        )
    return part


def _size(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def _parts(backbone: nn.Module) -> list[str]:
    """The top-level parts that have weights, and the last two of any part that holds most of them."""
    found, open_ends = [], [("", backbone)]
    while open_ends:
        at, part = open_ends.pop(0)
        inner = [(f"{at}.{name}".lstrip("."), child) for name, child in part.named_children() if _size(child)]
        inner = inner[-2:] if at else inner
        found += [name for name, _ in inner]
        open_ends += [(name, child) for name, child in inner if 2 * _size(child) > _size(backbone)]
    return found
