"""OpenVINO and torch against the plain network, and the choice between them."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from graft import openvino_core
from graft.environment import available_cores, describe_environment
from graft.features import engines
from graft.features.engines import Engine, Normalised, TorchEngine, fold_batchnorm, make_engine, resolve
from graft.inputs import IMAGENET_MEAN, IMAGENET_STD
from graft.model import build_backbone, fingerprint
from tests.backbones import scramble, tiny_backbone
from tests.cores import bound_threads
from tests.pictures import draw

BATCH, SIZE = 4, 64
ENGINES = [("openvino", "fp32"), ("openvino", "bf16"), ("torch", "fp32"), ("torch", "bf16")]
# Of the largest feature, for whole networks: bf16 has 8 bits of mantissa.
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}

Vectors = NDArray[np.float32]
Build = Callable[[str, str, Callable[[Any, Vectors], None]], Engine]


@pytest.fixture(scope="session")
def network() -> Normalised:
    """ResNet-18 whose BatchNorm does something."""
    backbone = build_backbone("resnet18", seed=0).requires_grad_(False)
    scramble(backbone, seed=1)
    return Normalised(backbone, IMAGENET_MEAN, IMAGENET_STD).eval()


@pytest.fixture(scope="session")
def photos() -> NDArray[np.uint8]:
    """Six batches, uint8 [6, BATCH, SIZE, SIZE, 3]."""
    rng = np.random.default_rng(0)
    return np.stack([[draw(label, rng, SIZE) for label in range(BATCH)] for _ in range(6)])


@pytest.fixture(scope="session")
def plain(network: Normalised, photos: NDArray[np.uint8]) -> Vectors:
    """What the network itself says, float32 [6, BATCH, 512]."""
    with torch.inference_mode():
        return np.stack([network(torch.from_numpy(batch)).numpy() for batch in photos])


class Runner:
    """An engine, made once for all tests, with what it has given since the last `run`."""

    def __init__(self, network: Normalised, engine: str, precision: str) -> None:
        self.given: list[tuple[Any, Vectors]] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.engine = make_engine(
                network,
                engine=engine,
                precision=precision,
                device="cpu",
                batch_size=BATCH,
                image_size=SIZE,
                receive=lambda tag, vectors: self.given.append((tag, vectors)),
            )
        self.warnings = [str(warning.message) for warning in caught]

    def run(self, *batches: NDArray[np.uint8]) -> list[tuple[Any, Vectors]]:
        """(tag, vectors) of each batch, the tag being its number, in the order they came."""
        self.given.clear()
        for number, batch in enumerate(batches):
            self.engine.submit(batch, number)
        self.engine.finish()
        return list(self.given)


@pytest.fixture(scope="session")
def runner(network: Normalised) -> Callable[[str, str], Runner]:
    made: dict[tuple[str, str], Runner] = {}

    def get(engine: str, precision: str) -> Runner:
        if (engine, precision) not in made:
            made[engine, precision] = Runner(network, engine, precision)
        return made[engine, precision]

    return get


@pytest.mark.parametrize(("engine", "precision"), ENGINES)
class TestVectors:
    def test_every_batch_comes_once_with_the_networks_vectors(
        self,
        runner: Callable[[str, str], Runner],
        photos: NDArray[np.uint8],
        plain: Vectors,
        engine: str,
        precision: str,
    ) -> None:
        given = runner(engine, precision).run(*photos)
        assert sorted(tag for tag, _ in given) == list(range(6))
        for tag, vectors in given:
            assert vectors.shape == (BATCH, 512)
            assert vectors.dtype == np.float32
            assert np.abs(vectors - plain[tag]).max() <= TOLERANCE[precision] * np.abs(plain).max()

    def test_neighbours_do_not_change_a_vector(
        self, runner: Callable[[str, str], Runner], photos: NDArray[np.uint8], engine: str, precision: str
    ) -> None:
        first, second = photos[0], photos[1]
        mixed = np.stack([second[3], first[2], second[0], first[0]])
        padded = np.zeros_like(first)
        padded[0] = first[2]
        given = dict(runner(engine, precision).run(first, second, mixed, padded))
        assert np.array_equal(given[2], np.stack([given[1][3], given[0][2], given[1][0], given[0][0]]))
        assert np.array_equal(given[3][0], given[0][2])


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_bf16_is_computed_where_the_processor_has_it(
    runner: Callable[[str, str], Runner], photos: NDArray[np.uint8], plain: Vectors, engine: str
) -> None:
    if resolve(engine, "auto", "cpu")[1] != "bf16":
        pytest.skip("this processor has no bf16")
    [(_, vectors)] = runner(engine, "bf16").run(photos[0])
    assert np.abs(vectors - plain[0]).max() > 1e-4 * np.abs(plain).max()


def test_the_last_batch_comes_at_the_end_at_the_latest(
    runner: Callable[[str, str], Runner], photos: NDArray[np.uint8]
) -> None:
    for engine in ("openvino", "torch"):
        assert len(runner(engine, "fp32").run(photos[0])) == 1
        assert runner(engine, "fp32").run() == []


def test_an_engine_can_be_fed_from_another_thread(
    runner: Callable[[str, str], Runner], photos: NDArray[np.uint8], plain: Vectors
) -> None:
    for engine in ("openvino", "torch"):
        one = runner(engine, "fp32")
        thread = threading.Thread(target=one.run, args=tuple(photos))
        thread.start()
        thread.join()
        assert np.allclose(dict(one.given)[5], plain[5], atol=1e-4 * np.abs(plain).max())


@pytest.mark.parametrize(("engine", "precision"), ENGINES)
def test_making_an_engine_warns_of_nothing(runner: Callable[[str, str], Runner], engine: str, precision: str) -> None:
    assert runner(engine, precision).warnings == []


def test_no_thread_of_an_engine_is_bound_to_a_core(
    runner: Callable[[str, str], Runner], photos: NDArray[np.uint8]
) -> None:
    # OpenVINO's would be by default, those of two processes to the same one.
    runner("openvino", "fp32").run(photos[0])
    assert bound_threads() == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_gives_the_networks_vectors(
    network: Normalised, photos: NDArray[np.uint8], plain: Vectors, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    given: dict[int, Vectors] = {}
    engine = TorchEngine(network, precision, "cuda", given.__setitem__)
    for number, batch in enumerate(photos):
        engine.submit(batch, number)
        assert len(given) == number  # the batch before, not this one
    engine.finish()
    found = np.stack([given[number] for number in range(6)])
    assert np.abs(found - plain).max() <= TOLERANCE[precision] * np.abs(plain).max()
    assert {part.dtype for part in network.parameters()} == {torch.float32}


class TestFolding:
    def test_a_folded_network_says_the_same_without_batchnorm(self, network: Normalised, plain: Vectors) -> None:
        before = fingerprint(network.backbone)
        folded = fold_batchnorm(network.backbone)
        assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
        assert any(isinstance(part, nn.BatchNorm2d) for part in network.backbone.modules())
        assert fingerprint(network.backbone) == before
        images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected, found = network.backbone(images), folded(images)
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()

    def test_what_cannot_be_traced_is_left_as_it_is(self) -> None:
        class Moody(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = tiny_backbone()

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                result: torch.Tensor = self.inner(images if images.sum() > 0 else -images)
                return result

        moody = Moody().eval()
        folded = fold_batchnorm(moody)
        assert folded is not moody  # the engine moves it to its device
        assert fingerprint(folded) == fingerprint(moody)

    def test_the_torch_engine_leaves_the_backbone_as_it_was(self) -> None:
        backbone = tiny_backbone()
        weight = next(backbone.parameters())
        before = weight.stride(), weight.data_ptr()
        TorchEngine(Normalised(backbone, IMAGENET_MEAN, IMAGENET_STD), "fp32", "cpu", lambda tag, vectors: None)
        after = next(backbone.parameters())
        assert (after.stride(), after.data_ptr()) == before


class TestResolve:
    @pytest.mark.parametrize(
        ("engine", "precision", "device", "has_bf16", "expected"),
        [
            ("auto", "auto", "cpu", True, ("openvino", "bf16")),
            ("auto", "auto", "cpu", False, ("openvino", "fp32")),
            ("auto", "auto", "cuda", True, ("torch", "bf16")),
            ("auto", "auto", "cuda", False, ("torch", "fp32")),
            ("torch", "auto", "cpu", True, ("torch", "bf16")),
            ("openvino", "auto", "cuda", True, ("openvino", "bf16")),
            ("auto", "fp32", "cpu", True, ("openvino", "fp32")),
            ("auto", "bf16", "cpu", False, ("openvino", "bf16")),  # asked for is asked for
            ("torch", "fp32", "cuda", True, ("torch", "fp32")),
        ],
    )
    def test_auto_stands_for_what_the_machine_has(
        self,
        monkeypatch: pytest.MonkeyPatch,
        engine: str,
        precision: str,
        device: str,
        has_bf16: bool,
        expected: tuple[str, str],
    ) -> None:
        monkeypatch.setattr(engines, "_has_bf16", lambda engine, device: has_bf16)
        assert resolve(engine, precision, device) == expected

    @pytest.mark.parametrize("truth", [True, False])
    @pytest.mark.parametrize(
        ("engine", "device", "asked"),
        [("openvino", "cpu", "openvino"), ("openvino", "cuda", "openvino"), ("torch", "cpu", "cpu"),
         ("torch", "cuda", "cuda")],
    )  # fmt: skip
    def test_bf16_is_asked_of_what_computes(
        self, monkeypatch: pytest.MonkeyPatch, engine: str, device: str, asked: str, truth: bool
    ) -> None:
        """Every other part of the machine says the opposite."""

        def says(who: str) -> bool:
            return truth if who == asked else not truth

        capabilities = ["FP32", "BF16"] if says("openvino") else ["FP32", "INT8"]
        core = SimpleNamespace(get_property=lambda device, name: capabilities)
        monkeypatch.setattr(openvino_core, "core", lambda: core)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: says("cpu"))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: says("cuda"))
        assert resolve(engine, "auto", device)[1] == ("bf16" if truth else "fp32")


class TestMachine:
    def test_the_gpu_is_named_where_torch_sees_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert describe_environment()["gpu"] is None
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        properties = SimpleNamespace(name="Fast 1", total_memory=24 * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        assert describe_environment()["gpu"] == "Fast 1, 24 GiB"
        monkeypatch.delitem(sys.modules, "torch")
        assert describe_environment()["gpu"] is None

    def test_cores_are_counted_on_every_system(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
        assert available_cores() == 3
        monkeypatch.delattr(os, "sched_getaffinity")
        assert available_cores() == 8
