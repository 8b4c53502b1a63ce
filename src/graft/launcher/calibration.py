"""How fast machines are: a figure for a core, measured here or shipped, and what follows for others.

A core of a machine that was measured decodes photos and multiplies at known rates. Another machine's are within a
range around them; GPUs' are assumed, for none was at hand (docs/sagemaker.md says which figures are which).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from graft.errors import CloudError
from graft.launcher.prices import Machine
from graft.storage import write_text

SHIPPED = Path(__file__).with_name("calibration.json")
MEASURED = "calibration.json"  # below features.cache_dir

# G multiply-adds of an image at the size that the weights expect, as torchvision states them (`_ops` of the weights).
BACKBONE_GMACS = {
    "alexnet": 0.71,
    "convnext_tiny": 4.46,
    "densenet121": 2.83,
    "densenet161": 7.73,
    "efficientnet_b0": 0.39,
    "mobilenet_v2": 0.3,
    "mobilenet_v3_large": 0.22,
    "resnet18": 1.81,
    "resnet34": 3.66,
    "resnet50": 4.09,
    "resnet101": 7.8,
    "resnet152": 11.51,
    "squeezenet1_1": 0.35,
    "vit_b_16": 17.56,
    "wide_resnet50_2": 11.4,
}
# A virtual core of another machine against the core that was measured, which may be half of one or newer.
_DECODING = (0.5, 2.0)
_ARITHMETIC = (0.5, 2.0)
# Families whose processors compute bf16 in matrix units (AMX): 206 images/s on 2 cores (README, Figures) are 16 times
# the arithmetic of the shipped core, and a virtual core has a part of that.
_ARITHMETIC_OF = {"c7i": (3.0, 16.0), "m7i": (3.0, 16.0)}
# GFLOP/s that a GPU of an instance family reaches in fp32 convolutions: a quarter to a half of the peak that NVIDIA
# states (T4 8,100; A10G 31,200; L4 30,300; V100 15,700). Assumed, not measured.
_GPU_GFLOPS = {"g4dn": (2_000, 4_000), "g5": (7_500, 15_000), "g6": (7_500, 15_000), "p3": (4_000, 8_000)}


class Span(NamedTuple):
    """From and to."""

    low: float
    high: float

    def plus(self, other: Span) -> Span:
        """The sum of two spans."""
        return Span(self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> Span:
        """A multiple of it."""
        return Span(self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Calibration:
    """What a core was measured to do.

    Attributes:
        date: of the measurement, ISO.
        machine: name of its processor.
        cores: that took part.
        decoded_per_s: photos of 500 x 375 that one core decodes and resizes in a second.
        gflops: of one core in the backbone's engine.
    """

    date: str
    machine: str
    cores: int
    decoded_per_s: float
    gflops: float


def read_calibration(cache_dir: Path) -> Calibration:
    """What `python -m graft.launcher calibrate` measured here, else the figure of this release."""
    measured = cache_dir / MEASURED
    path = measured if measured.exists() else SHIPPED
    try:
        return Calibration(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CloudError(f"{path} cannot be read ({error}); delete it, and the figure of the release counts") from error


def write_calibration(calibration: Calibration, cache_dir: Path) -> Path:
    """Keep a measurement; returns where."""
    path = cache_dir / MEASURED
    write_text(path, json.dumps(asdict(calibration), indent=1) + "\n")
    return path


def look_seconds(calibration: Calibration, machine: Machine, family: str, backbone: str) -> Span:
    """Seconds of one look at one photo (decoding and backbone) on a machine.

    Args:
        calibration: of a core.
        machine: cores and GPUs; a virtual core counts as one, which the range covers.
        family: of the instance, such as g4dn.
        backbone: name; one that is not known counts as ResNet-50.
    """
    flop = 2 * BACKBONE_GMACS.get(backbone, BACKBONE_GMACS["resnet50"])
    cores = max(machine.vcpus, 1)
    decoding = _slower_and_faster(1 / (calibration.decoded_per_s * cores), _DECODING)
    if not machine.gpus:
        speeds = _ARITHMETIC_OF.get(family, _ARITHMETIC)
        return decoding.plus(_slower_and_faster(flop / (calibration.gflops * cores), speeds))
    slow, fast = _GPU_GFLOPS.get(family, _GPU_GFLOPS["g4dn"])
    # Cores decode while the GPU works: the slower of the two counts.
    return Span(max(decoding.low, flop / fast / machine.gpus), max(decoding.high, flop / slow / machine.gpus))


def _slower_and_faster(seconds: float, speeds: tuple[float, float]) -> Span:
    return Span(seconds / speeds[1], seconds / speeds[0])
