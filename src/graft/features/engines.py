"""What runs the frozen backbone: OpenVINO on a CPU, torch on a GPU. uint8 images in, float32 vectors out."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from graft.environment import available_cores
from graft.openvino_core import UNBOUND, core, has_bf16
from graft.transforms import normalise

Pixels = NDArray[np.uint8]  # [B, S, S, 3]
Vectors = NDArray[np.float32]  # [B, D]
Receive = Callable[[Any, Vectors], None]


class Engine(Protocol):
    """Runs batches asynchronously; `receive(tag, vectors)` is called once per batch, in any order."""

    def submit(self, pixels: Pixels, tag: Any) -> None:
        """Start a batch; blocks while the engine is full. `pixels` must not change until received."""
        ...

    def finish(self) -> None:
        """Wait until every batch was received."""
        ...


class Normalised(nn.Module):
    """Pixels to features: normalisation and backbone as one network, so that an engine fuses them."""

    def __init__(self, backbone: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.backbone, self.mean, self.std = backbone, tuple(mean), tuple(std)
        self.dtype = torch.float32  # of what the backbone is given

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, S, S, 3] -> [B, D] of the backbone's dtype."""
        normalised = normalise(images, self.mean, self.std)
        features: torch.Tensor = self.backbone(normalised.to(self.dtype))
        return features


def resolve(engine: str, precision: str, device: str) -> tuple[str, str]:
    """The engine and precision that `auto` stands for on this machine.

    bf16 is chosen only where the processor computes in it: elsewhere it is slower than fp32.
    """
    if engine == "auto":
        engine = "openvino" if device == "cpu" else "torch"
    if precision == "auto":
        precision = "bf16" if _has_bf16(engine, device) else "fp32"
    return engine, precision


def make_engine(
    network: Normalised,
    *,
    engine: str,
    precision: str,
    device: str,
    batch_size: int,
    image_size: int,
    receive: Receive,
) -> Engine:
    """An engine that is ready to run batches of exactly `batch_size` images.

    Args:
        network: in eval mode.
        engine: openvino or torch, see `resolve`.
        precision: fp32 or bf16.
        device: cpu or cuda; openvino runs on the CPU whatever it says.
        batch_size: images per batch; fixed, so that a vector does not depend on its neighbours.
        image_size: side of the square images.
        receive: called with the tag and the vectors of every batch, perhaps from another thread.
    """
    if engine == "openvino":
        return OpenVinoEngine(network, precision, (batch_size, image_size, image_size, 3), receive)
    return TorchEngine(network, precision, device, receive)


class OpenVinoEngine:
    """OpenVINO on the CPU, two batches in flight; folds BatchNorm into the convolutions by itself."""

    def __init__(self, network: Normalised, precision: str, shape: tuple[int, ...], receive: Receive) -> None:
        import openvino as ov
        from openvino.tools.ovc import convert_model

        example = torch.zeros((1, *shape[1:]), dtype=torch.uint8)
        with torch.no_grad(), warnings.catch_warnings():
            # OpenVINO 2026.4 traces with what torch 2.14 advises against; nobody here can change that.
            warnings.filterwarnings("ignore", r"`torch\.jit\.", FutureWarning)
            model = convert_model(network, example_input=example)
        model.reshape(list(shape))
        hints = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
            **UNBOUND,
        }
        if "LOCAL_WORLD_SIZE" in os.environ:  # each process of several would take all cores
            hints["INFERENCE_NUM_THREADS"] = str(available_cores())
        self._queue = ov.AsyncInferQueue(core().compile_model(model, "CPU", hints), 0)
        # The output tensor is used again for a later batch, so what is received is a copy.
        self._queue.set_callback(lambda request, tag: receive(tag, request.get_output_tensor(0).data.copy()))

    def submit(self, pixels: Pixels, tag: Any) -> None:
        """See `Engine`."""
        self._queue.start_async({0: pixels}, tag, share_inputs=True)

    def finish(self) -> None:
        """See `Engine`."""
        self._queue.wait_all()


class TorchEngine:
    """Eager torch with channels_last and folded BatchNorm; on a GPU it copies while it computes."""

    def __init__(self, network: Normalised, precision: str, device: str, receive: Receive) -> None:
        self._network = Normalised(fold_batchnorm(network.backbone), network.mean, network.std)
        self._network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._device, self._receive = torch.device(device), receive
        self._autocast = precision == "bf16" and self._device.type == "cpu"
        if precision == "bf16" and not self._autocast:
            # Autocast would bring the weights to bf16 again for every batch.
            self._network.to(torch.bfloat16).dtype = torch.bfloat16
        self._running: tuple[Any, torch.Tensor, torch.cuda.Event | None] | None = None

    def submit(self, pixels: Pixels, tag: Any) -> None:
        """See `Engine`."""
        images = torch.from_numpy(pixels)
        if self._device.type == "cuda":
            images = images.pin_memory().to(self._device, non_blocking=True)
        with torch.inference_mode(), self._precision():
            vectors, done = self._fetch(self._network(images).float())
        # The batch before is waited for only now, so that the GPU has work meanwhile.
        self._deliver()
        self._running = (tag, vectors, done)

    def finish(self) -> None:
        """See `Engine`."""
        self._deliver()

    def _fetch(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        """The vectors on the CPU, there once the event has happened."""
        if self._device.type == "cpu":
            return vectors, None
        here = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        here.copy_(vectors, non_blocking=True)
        # An event of this batch: to wait for the stream would be to wait for the next batch too.
        # A blocking one sleeps, where others spin on a core that could decode.
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record()
        return here, done

    def _deliver(self) -> None:
        if self._running is not None:
            tag, vectors, done = self._running
            self._running = None
            if done is not None:
                done.synchronize()
            self._receive(tag, vectors.numpy())

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, torch.bfloat16) if self._autocast else nullcontext()


def fold_batchnorm(backbone: nn.Module) -> nn.Module:
    """A copy of the backbone with BatchNorm folded into its convolutions, where torch.fx can trace it."""
    from torch.fx.experimental.optimization import fuse
    from torch.fx.proxy import TraceError

    try:
        return fuse(backbone)
    except TraceError:
        return copy.deepcopy(backbone)


def _has_bf16(engine: str, device: str) -> bool:
    if engine == "openvino":
        return has_bf16()
    if device != "cpu":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())
