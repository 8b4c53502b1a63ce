"""A served model: pixels in, answers out. Manifest, engine, thresholds and parity samples of one folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graft.artifacts import Manifest, ParitySample, network_digest, read_manifest, read_parity
from graft.errors import RunError
from graft.inputs import InputSpec
from graft.novelty import Novelty, read_novelty
from serve.answers import Answer
from serve.engines import Engine, Pixels, load_engine

# Largest distance of an engine's logits from the parity samples', relative to their length (L2). Measured, worst of
# 16 samples (docs/decisions/0014): fp32 3e-6, int8 0.11. A model that is another one is beyond 0.5.
PARITY_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.3}


class ServedModel:
    """A model that is ready to answer; safe to call from several threads at once.

    Attributes:
        manifest: what it says of itself.
        engine: what runs it.
    """

    def __init__(self, path: Path, manifest: Manifest, engine: Engine, novelty: Novelty | None) -> None:
        self.path, self.manifest, self.engine, self._novelty = path, manifest, engine, novelty
        self._checked, self._unchecked = 0, list[ParitySample]()

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        engine: str | None = None,
        precision: str = "auto",
        threads: int | None = None,
        streams: int = 1,
    ) -> ServedModel:
        """The model of a bundle, or of an unpacked model.tar.gz.

        Args:
            path: its folder.
            engine: openvino or torch; None or auto: openvino where the folder holds an exported network.
            precision: auto, fp32, bf16 or int8, see `serve.engines.load_engine`.
            threads: of the engine in all; None leaves that to it.
            streams: calls that the engine runs side by side.

        Raises:
            RunError: the folder holds no whole model.
            ConfigError: it does not offer the engine or the precision.
        """
        manifest = read_manifest(path)
        exported = manifest.export.precision if manifest.export else None
        # A damaged network may be compiled meanwhile; no photo is answered by it.
        with ThreadPoolExecutor(1, "digest") as pool:
            whole = pool.submit(_check_network, path, manifest)
            try:
                ready = load_engine(
                    path, engine or "auto", exported=exported, precision=precision, threads=threads, streams=streams
                )
            finally:
                whole.result()  # a network that is another one may also fail to load: this is what to say of it
        return cls(path, manifest, ready, read_novelty(path) if manifest.doubts and manifest.doubts.distance else None)

    @property
    def spec(self) -> InputSpec:
        """What it expects of a photo."""
        return self.manifest.input

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, by index."""
        return self.manifest.class_names

    @property
    def model_id(self) -> str:
        """Of the run that made it."""
        return self.manifest.model_id

    def predict(self, images: Pixels) -> list[Answer]:
        """Answers for squares uint8 [B, S, S, 3]."""
        logits, features = self.engine.run(images)
        probabilities = softmax(logits / self.manifest.temperature)
        distances = self._novelty.distances(features) if self._novelty else np.full(len(logits), np.nan)
        rows = zip(logits, probabilities, distances.tolist(), strict=True)
        return [self._answer(*row) for row in rows]

    def _answer(self, logits: NDArray[np.float32], probabilities: NDArray[np.float32], distance: float) -> Answer:
        doubts = self.manifest.doubts
        limit = (doubts and doubts.distance) or math.inf  # earlier releases wrote 0 for two classes
        return Answer(
            self.labels,
            logits,
            probabilities,
            unsure=doubts is not None and float(probabilities.max()) < doubts.probability,
            not_one_of_these=distance > limit,
            distance=distance / limit,
        )

    def check_parity(self, most: int | None = None) -> float:
        """Run the parity samples; the worst relative difference from what the model must answer.

        Args:
            most: how many of them; None runs all.

        Raises:
            RunError: the engine does not reproduce them, or they were left out.
        """
        samples = read_parity(self.path)
        if not samples:
            raise RunError(f"{self.path}/parity holds no samples, so nothing tells whether the model is whole")
        most = len(samples) if most is None else most
        self._checked, self._unchecked = most, samples[most:]
        return self._check(samples[:most], first=0)

    def check_remaining(self) -> None:
        """Run the parity samples that `check_parity` was told to leave out; the folder may be gone by now.

        Raises:
            RunError: the engine does not reproduce them.
        """
        remaining, self._unchecked = self._unchecked, []
        if remaining:
            self._check(remaining, first=self._checked)

    def _check(self, samples: Sequence[ParitySample], first: int) -> float:
        from graft.images import render  # the network is loaded while what decodes is imported, which takes 0.1 s

        pixels = [render(sample.data, self.spec).pixels for sample in samples]
        # By the way of requests, and one by one as they come: memory would grow to what sixteen need.
        logits = np.stack([answer.logits for image in pixels for answer in self.predict(image[None])])
        expected = [sample.logits for sample in samples]
        return check_parity(self.path, self.engine.precision, logits, expected, first)


def _check_network(path: Path, manifest: Manifest) -> None:
    """Refuse an exported network that is not the manifest's."""
    if manifest.export and network_digest(path) != manifest.export.sha256:
        raise RunError(f"{path} holds another network than manifest.json says; copy or pack the model again")


def check_parity(
    path: Path, precision: str, found: NDArray[np.float32], expected: Sequence[NDArray[np.float32]], first: int = 0
) -> float:
    """The worst relative difference (L2) of logits [N, C] from those expected of parity samples `first` and on.

    Raises:
        RunError: it is beyond PARITY_TOLERANCE.
    """
    wanted = np.stack(expected)
    if found.shape != wanted.shape:
        raise RunError(f"{path}: the engine gives logits of shape {found.shape}, the parity samples {wanted.shape}")
    differences = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    worst = int(np.argmax(np.nan_to_num(differences, nan=np.inf)))
    tolerance = PARITY_TOLERANCE[precision]
    if not differences[worst] <= tolerance:
        raise RunError(
            f"{path}: the {precision} engine does not reproduce parity sample {first + worst:02d}: logits differ by "
            f"{differences[worst]:.2g} of their length; accepted is at most {tolerance:g}. Copy or pack the model again"
        )
    return float(differences[worst])


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities float32 [B, C] of logits [B, C]."""
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: NDArray[np.float32] = exponents / exponents.sum(axis=1, keepdims=True)
    return found
