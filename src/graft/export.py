"""A bundle as what an endpoint loads: one OpenVINO network from pixels to logits and features."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from graft.artifacts import EXPORTED_NETWORK, Export, Manifest, network_digest, write_manifest
from graft.predictor import Predictor
from graft.quantise import Quantised
from graft.transforms import normalise

if TYPE_CHECKING:
    import openvino as ov

OUTPUTS = ("logits", "features")
NOT_SERVED = ("model.safetensors", "manifest.json")  # of a bundle: the network holds the weights


class Served(nn.Module):
    """Normalisation, backbone and head as one network, so that an engine fuses them."""

    def __init__(self, backbone: nn.Module, head: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.backbone, self.head, self.mean, self.std = backbone, head, tuple(mean), tuple(std)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 [B, S, S, 3] -> logits float32 [B, C], features float32 [B, D]."""
        features = self.backbone(normalise(images, self.mean, self.std))
        return self.head(features), features


def convert(predictor: Predictor) -> ov.Model:
    """The network of a bundle in OpenVINO, fp32, for any number of images at a time."""
    from openvino.tools.ovc import convert_model

    spec = predictor.manifest.input
    network = Served(predictor.backbone, predictor.head, spec.mean, spec.std).eval()
    # Two images: traced with one, an operation may take the 1 for a constant.
    example = torch.zeros((2, spec.image_size, spec.image_size, 3), dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings():
        # OpenVINO 2026.4 traces with what torch 2.14 advises against; nobody here can change that.
        warnings.filterwarnings("ignore", r"`torch\.jit\.", FutureWarning)
        model = convert_model(network, example_input=example)
    model.reshape([-1, spec.image_size, spec.image_size, 3])
    for output, name in zip(model.outputs, OUTPUTS, strict=True):
        output.get_tensor().set_names({name})
    return model


def export(bundle: Path, folder: Path, quantised: Callable[[ov.Model, Manifest], Quantised] | None = None) -> None:
    """Write what an endpoint loads of a bundle: network, manifest, parity samples and what tells distances.

    Args:
        bundle: of a run.
        folder: is made, and must not be there.
        quantised: gives the network in int8, see `graft.quantise`; None exports it in fp32.

    Raises:
        RunError: there is no whole bundle.
    """
    predictor = Predictor(bundle)
    model, precision, figures = convert(predictor), "fp32", {}
    if quantised:
        found = quantised(model, predictor.manifest)
        model, precision, figures = found.model, "int8", found.figures
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns(*NOT_SERVED))
    write_network(model, folder)
    write_manifest(folder, replace(predictor.manifest, export=described(folder, precision, figures)))


def write_network(model: ov.Model, folder: Path) -> None:
    """Write both files of a network, weights as they are: OpenVINO would halve them by default."""
    import openvino as ov

    ov.save_model(model, folder / EXPORTED_NETWORK, compress_to_fp16=False)


def described(folder: Path, precision: str, figures: dict[str, float]) -> Export:
    """What a manifest says of the network in a folder."""
    import openvino as ov

    return Export(precision, network_digest(folder), ov.get_version().partition("-")[0], figures)
