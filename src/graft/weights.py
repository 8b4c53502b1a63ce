"""Weights files: found by name or path, downloaded once, read without running code, and checked key by key."""

from __future__ import annotations

import difflib
import http.client
import pickle
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import safetensors
import safetensors.torch
import torch
import torch.hub
from torch import Tensor, nn
from torchvision import models

from graft.errors import ConfigError, WeightsError

NAMED_WEIGHTS = ("imagenet1k_v1", "imagenet1k_v2")
FILE_KINDS = "the path of a .pth, .pt or .safetensors file"
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and by torch.compile
# torchvision's published densenet and vit files still have the names of earlier releases.
_RENAMED = (
    (re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
# What torch.load and the zip and pickle readers under it raise on damaged files.
UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
    safetensors.SafetensorError,
)


def named_weights(name: str, weights: str) -> Any:
    """Torchvision's weights entry (url, recipe) of a model, by a name such as imagenet1k_v1.

    Raises:
        ConfigError: the model has no weights of that name.
    """
    entries = models.get_model_weights(name).__members__
    if weights.upper() not in entries:
        raise ConfigError(f"model.weights={weights}: {name} has none of that name; {_accepted(name)}")
    return entries[weights.upper()]


def _accepted(name: str) -> str:
    return f"accepted: {', '.join([*_names(name), 'none'])}, or {FILE_KINDS}"


def _names(name: str) -> list[str]:
    """The words for weights that a model has."""
    entries = models.get_model_weights(name).__members__
    return [word for word in NAMED_WEIGHTS if word.upper() in entries]


def locate(name: str, weights: str) -> tuple[Path, str]:
    """The file of `model.weights`, and how errors name it.

    Raises:
        ConfigError: the model has no weights of that name.
        WeightsError: there is no such file, or it could not be downloaded.
    """
    if weights.lower() in NAMED_WEIGHTS:
        path = _hub_file(weights, named_weights(name, weights).url)
        return path, f"model.weights={weights} ({path})"
    path = Path(weights).expanduser()
    if not path.is_file():
        what = "a folder" if path.is_dir() else f"no such file{_nearest(path, name, weights)}"
        raise WeightsError(f"model.weights={weights}: {what}; {_accepted(name)}")
    return path, f"model.weights={weights}"


def _nearest(path: Path, name: str, weights: str) -> str:
    if near := difflib.get_close_matches(weights.lower(), _names(name), n=1):
        return f"; nearest: {near[0]}"
    files = [entry.name for entry in path.parent.iterdir() if entry.is_file()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, files, n=1)
    return f"; nearest: {path.parent / near[0]}" if near else ""


def _hub_file(weights: str, url: str) -> Path:
    """The named weights in torch.hub's folder, downloaded (and its hash checked) if absent."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(urlparse(url).path).name
    if path.is_file():
        return path
    stamp = torch.hub.HASH_REGEX.search(path.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            url, str(path), hash_prefix=stamp.group(1) if stamp else None, progress=sys.stderr.isatty()
        )
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        reason = reason.strerror if isinstance(reason, OSError) and reason.strerror else reason
        raise WeightsError(
            f"model.weights={weights}: {path.name} could not be downloaded ({reason}); accepted without "
            f"a network: model.weights=PATH of that file, the file in {folder}, or model.weights=none"
        ) from error
    return path


def load(module: nn.Module, path: Path, source: str, *, classifier: tuple[str, ...], expected: str) -> None:
    """Copy a file's tensors into all parameters and buffers of a module.

    Args:
        module: what is filled.
        path: a .pth, .pt or .safetensors file of tensors.
        source: how errors name the file.
        classifier: beginnings of names that the file may have beside the module's, e.g. `fc.`.
        expected: what the file should have been, for errors.

    Raises:
        WeightsError: the file is damaged, holds code, or its keys or shapes are another model's.
    """
    target = module.state_dict()
    found = _own_tensors(_read(path, source), target, source, classifier)
    faults = _faults(target, found)
    if faults:
        raise WeightsError(f"{source}: {'; '.join(faults)}; accepted: the state_dict of {expected}")
    # Not load_state_dict: mnasnet refuses dicts without torch's own version stamp (safetensors).
    with torch.no_grad():
        for name, tensor in found.items():
            target[name].copy_(tensor)


def _read(path: Path, source: str) -> object:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with path.open("rb") as file:
            # Files of torch before 1.6 are no zip archives and cannot be mapped. Mapped, the one copy
            # is the one into the module.
            mappable = file.read(4) == b"PK\x03\x04"
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except UNREADABLE as error:
        raise WeightsError(
            f"{source}: cannot be read as weights ({_reason(error)}); accepted: tensors alone, written by "
            "torch.save(model.state_dict(), PATH) or as .safetensors"
        ) from error


def _reason(error: Exception) -> str:
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it holds code, {code.group(1)}, which is never run"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "damaged, or not such a file"


def _own_tensors(
    content: object, target: Mapping[str, Tensor], source: str, classifier: tuple[str, ...]
) -> dict[str, Tensor]:
    """The file's tensors under the module's names: unwrapped, old names mended, classifiers left out."""
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{source}: holds a {type(content).__name__}; accepted: a dict of names to tensors")
    tensors = {_own_name(str(name), target): tensor for name, tensor in content.items()}
    return {name: tensor for name, tensor in tensors.items() if name in target or not name.startswith(classifier)}


def _own_name(name: str, target: Mapping[str, Tensor]) -> str:
    while name not in target and name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    if name not in target:
        for old, new in _RENAMED:
            name = old.sub(new, name)
    return name


def _faults(target: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with a file, one phrase per kind; empty if nothing is."""
    # Files older than torch 0.4.1 do not have the counter, and only training without momentum reads it.
    missing = [name for name in target if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in target]
    common = [name for name in found if name in target]
    other = [
        f"{name} {_form(found[name])} in place of {_form(target[name])}"
        for name in common
        if _form(found[name]) != _form(target[name])
    ]
    # The sum is not finite where a value is not, and takes a fifth of the time of looking at each.
    not_finite = [name for name in common if not found[name].sum(dtype=torch.float32).isfinite()]
    kinds = {"missing": missing, "unexpected": unexpected, "of another form": other, "not finite": not_finite}
    return [_listed(kind, names) for kind, names in kinds.items() if names]


def _form(tensor: Tensor) -> str:
    """Kind of number and shape; any floating-point width will do."""
    return f"{'' if tensor.is_floating_point() else 'integer '}{list(tensor.shape)}"


def _listed(kind: str, names: Sequence[str]) -> str:
    keys = "1 key" if len(names) == 1 else f"{len(names)} keys"
    return f"{keys} {kind} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
