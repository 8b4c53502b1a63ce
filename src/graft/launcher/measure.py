"""How fast a core of this machine is: photos decoded, and arithmetic in the backbone's engine, measured for 20 s."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np

from graft.environment import available_cores, describe_environment
from graft.images import render
from graft.inputs import InputSpec
from graft.launcher.calibration import BACKBONE_GMACS, Calibration

_SECONDS = 6.0  # for each of the two
_BATCH = 16
_BACKBONE = "resnet50"
SPEC = InputSpec(image_size=224, resize=256)  # what its weights expect


def measure(seconds: float = _SECONDS) -> Calibration:
    """Measure decoding and backbone on all cores that this process may use.

    Args:
        seconds: for each of the two; compiling the network takes some more.
    """
    cores = available_cores()
    return Calibration(
        date=datetime.now(UTC).date().isoformat(),
        machine=str(describe_environment()["processor"]),
        cores=cores,
        decoded_per_s=_decoding(cores, seconds) / cores,
        gflops=_backbone(seconds) * 2 * BACKBONE_GMACS[_BACKBONE] / cores,
    )


def _decoding(cores: int, seconds: float) -> float:
    """Photos of 500 x 375 a second, by as many threads as cores."""
    import cv2

    # Smooth shapes with some noise: about as many bytes as a photo of this size has.
    smooth = cv2.resize(np.random.default_rng(0).integers(0, 255, (24, 32, 3)).astype(np.uint8), (500, 375))
    noisy = np.clip(smooth + np.random.default_rng(1).normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    data = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()

    def work(_: int) -> int:
        return sum(1 for _ in _repeated(lambda: render(data, SPEC), seconds))

    with ThreadPoolExecutor(cores) as pool:
        return sum(pool.map(work, range(cores))) / seconds


def _backbone(seconds: float) -> float:
    """Images a second of ResNet-50 in the engine that features take on a CPU."""
    import torchvision

    from graft.features.engines import Normalised, make_engine, resolve

    received: list[int] = []
    engine, precision = resolve("auto", "auto", "cpu")
    network = Normalised(torchvision.models.get_model(_BACKBONE), SPEC.mean, SPEC.std).eval()
    runner = make_engine(
        network,
        engine=engine,
        precision=precision,
        device="cpu",
        batch_size=_BATCH,
        image_size=SPEC.image_size,
        receive=lambda tag, vectors: received.append(len(vectors)),
    )
    pixels = np.zeros((_BATCH, SPEC.image_size, SPEC.image_size, 3), np.uint8)
    started = time.perf_counter()
    for _ in _repeated(lambda: runner.submit(pixels, None), seconds):
        pass
    runner.finish()
    return sum(received) / (time.perf_counter() - started)


def _repeated(call: Callable[[], object], seconds: float) -> list[None]:
    """Call until the time is over; an entry for each call."""
    calls: list[None] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        call()
        calls.append(None)
    return calls
