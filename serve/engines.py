"""What runs a served model: OpenVINO on an exported network, or torch on the bundle itself, behind one call."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from graft.artifacts import EXPORTED_NETWORK
from graft.errors import ConfigError, RunError
from graft.openvino_core import UNBOUND, core, has_bf16

if TYPE_CHECKING:
    import openvino as ov

Pixels = NDArray[np.uint8]  # [B, S, S, 3], RGB
Vectors = NDArray[np.float32]
DROP_EVERY_S = 0.01
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # of the parts that int8 leaves in floating point


class Engine(Protocol):
    """A network that is ready; safe to call from several threads at once."""

    precision: str

    def run(self, images: Pixels) -> tuple[Vectors, Vectors]:
        """Run one batch.

        Args:
            images: uint8 [B, S, S, 3], any B.

        Returns:
            Logits float32 [B, C] and features float32 [B, D].
        """
        ...


def load_engine(
    path: Path, engine: str, *, exported: str | None, precision: str, threads: int | None, streams: int = 1
) -> Engine:
    """An engine for the model in a folder.

    Args:
        path: a bundle, or an unpacked model.tar.gz.
        engine: openvino, torch, or auto: openvino where the folder holds an exported network.
        exported: the precision that it was exported in, fp32 or int8; None where it was not.
        precision: auto, fp32, bf16 or int8; auto is int8 where the network is, else bf16 where the processor
            computes in it, else fp32.
        threads: of the engine in all; None leaves that to it.
        streams: calls that it runs side by side, sharing its threads.

    Raises:
        ConfigError: an engine or a precision that the folder does not offer.
        RunError: engine=openvino and no exported network, or one that cannot be read.
    """
    if engine == "auto":
        engine = "openvino" if exported else "torch"
    if engine == "torch":
        if precision not in ("auto", "fp32"):
            raise ConfigError(f"serve.precision={precision}: serve.engine=torch computes in fp32 alone")
        if exported:
            raise ConfigError(f"serve.engine=torch: {path} was packed, which serves openvino; give the run's bundle/")
        return TorchEngine(path, threads)
    if exported is None:
        raise RunError(
            f"{path} holds no exported network, which serve.engine=openvino needs; "
            "`python -m serve pack run_dir=PATH` exports one, or give serve.engine=torch"
        )
    return OpenVinoEngine(path / EXPORTED_NETWORK, offered(path, exported, precision), threads, streams)


def offered(path: Path, exported: str, precision: str) -> str:
    """The precision to compute in; auto where the processor has yet to say.

    Args:
        path: of the model, for the error.
        exported: the precision that it was exported in, fp32 or int8.
        precision: that is asked for.

    Raises:
        ConfigError: the network does not offer it.
    """
    accepted = ("auto", "int8") if exported == "int8" else ("auto", "fp32", "bf16")
    if precision not in accepted:
        raise ConfigError(
            f"serve.precision={precision}: {path} was exported in {exported}, which serves {' or '.join(accepted)}; "
            f"`python -m serve pack run_dir=PATH serve.precision={precision}` exports another one"
        )
    return exported if exported == "int8" else precision


class OpenVinoEngine:
    """OpenVINO on the CPU; calls at the same time have a request each, which later calls use again.

    It packs its own copy of most weights at its first call. The others, and all of them for another shape, are still
    read from the file, which stays mapped.
    """

    def __init__(self, network: Path, precision: str, threads: int | None, streams: int) -> None:
        self.precision = precision if precision != "auto" else "bf16" if has_bf16() else "fp32"
        options = {"INFERENCE_PRECISION_HINT": HINTS[self.precision], "NUM_STREAMS": str(streams), **UNBOUND}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            model, self._file = read_network(network)
            self._compiled = core().compile_model(model, "CPU", options)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise RunError(f"{network} cannot be read ({reason}); pack the run again") from error
        self._is_packed = False
        # The last one used is used next: it is warm, whichever thread warmed it.
        self._idle: list[ov.InferRequest] = []

    def run(self, images: Pixels) -> tuple[Vectors, Vectors]:
        """See `Engine`."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        with nullcontext() if self._is_packed else dropping_pages(self._file):
            found = request.infer({0: images}, share_inputs=True)
        self._is_packed = True
        answer = found[0].copy(), found[1].copy()  # the request's own tensors are written again by its next call
        self._idle.append(request)
        return answer


def read_network(network: Path) -> tuple[ov.Model, mmap.mmap]:
    """An exported network, and the mapped file of its weights, which has to live as long as what is made of it.

    Nothing may write to the mapping: what is dropped of it is read from the file again.

    Raises:
        OSError, ValueError, RuntimeError: one of the two files cannot be read.
    """
    reader = core()  # before openvino is imported, which it does in a way of its own
    from openvino import Tensor

    with network.with_suffix(".bin").open("rb") as file:
        weights = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # OpenVINO refuses what it could not write
    tensor = Tensor(np.frombuffer(weights, np.uint8), shared_memory=True)
    return reader.read_model(network.read_bytes(), tensor), weights


@contextmanager
def dropping_pages(file: mmap.mmap) -> Iterator[None]:
    """Keep a file that is read meanwhile out of memory: what has been read is dropped, again and again.

    Of a ResNet-50 in fp32 that is 98 MB, beside as much that is packed. What is read once more is mapped once more.
    """
    done = threading.Event()

    def drop() -> None:
        with suppress(OSError):  # what a process locks in its memory stays there
            while not done.wait(DROP_EVERY_S):
                file.madvise(mmap.MADV_DONTNEED)
            file.madvise(mmap.MADV_DONTNEED)

    thread = threading.Thread(target=drop, name="pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class TorchEngine:
    """Eager torch in fp32 on the CPU: the reference, for bundles as a run leaves them."""

    def __init__(self, bundle: Path, threads: int | None) -> None:
        import torch

        from graft.predictor import Predictor

        if threads is not None:
            torch.set_num_threads(threads)
        self.precision = "fp32"
        self._predictor = Predictor(bundle)

    def run(self, images: Pixels) -> tuple[Vectors, Vectors]:
        """See `Engine`."""
        return self._predictor.logits_and_features(images)
