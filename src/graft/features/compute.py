"""Features of all splits of a folder: which spaces they lie in, and the pass that completes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from graft.data.digests import DIGEST_BYTES, UNKNOWN, DigestIndex, Digests
from graft.data.folder import PhotoList
from graft.features.cache import Space, evict
from graft.features.engines import Engine, Normalised, Pixels, Receive, Vectors, make_engine, resolve
from graft.features.extract import Extracted, Job, Progress, extract
from graft.images import PIXELS_VERSION
from graft.inputs import InputSpec
from graft.model import feature_width, fingerprint
from graft.processes import ALONE, Team
from graft.transforms import VIEW_VERSION

# bf16 has 8 bits of mantissa and float16 has 11: nothing is lost by storing half as much.
STORED_AS = {"fp32": "float32", "bf16": "float16"}


@dataclass(frozen=True)
class Backbone:
    """The frozen function and how it is run.

    Attributes:
        module: in eval mode.
        name: torchvision's name.
        spec: what it expects of an image.
        engine: auto, openvino or torch.
        precision: auto, fp32 or bf16.
        device: cpu or cuda.
        batch_size: images per call.
        fingerprint: of the module's weights; None has them hashed.
    """

    module: nn.Module
    name: str
    spec: InputSpec
    engine: str
    precision: str
    device: str
    batch_size: int
    fingerprint: str | None = None


class FeatureCache:
    """Features of one frozen backbone below a cache directory.

    Args:
        directory: of all cached features.
        backbone: the function.
        workers: decoding threads.
        index: of content hashes, so that photos seen before are not read again; None reads them all.
        team: the processes that share the work.
    """

    def __init__(
        self,
        directory: Path,
        backbone: Backbone,
        *,
        workers: int,
        index: DigestIndex | None = None,
        team: Team = ALONE,
    ) -> None:
        self.directory, self.backbone, self.workers = directory, backbone, workers
        self.index, self.team = index, team
        self.engine, self.precision = resolve(backbone.engine, backbone.precision, backbone.device)
        self._weights = backbone.fingerprint or fingerprint(backbone.module)
        self._spaces: set[str] = set()
        self._engine: Engine | None = None

    def plain(self, photos: PhotoList, progress: Progress) -> Extracted:
        """The plain view of every photo, in their order, and their content hashes."""
        return self._pass(photos, known_digests(photos, self.index), None, progress)

    def view(self, number: int, seed: int, photos: PhotoList, digests: Digests, progress: Progress) -> Extracted:
        """One augmented view of every photo: its crop depends on (seed, number, the photo's bytes) alone."""
        return self._pass(photos, digests, (seed, number), progress)

    @property
    def key(self) -> str:
        """Hex digest of what the plain view's features depend on beside the photos."""
        return self._space(None).key

    def evict(self, max_bytes: float) -> list[str]:
        """Remove the least recently used features of other runs beyond `max_bytes`."""
        return evict(self.directory, max_bytes, keep=sorted(self._spaces))

    def _pass(
        self, photos: PhotoList, digests: Digests, view_seed: tuple[int, ...] | None, progress: Progress
    ) -> Extracted:
        b = self.backbone
        job = Job(photos, digests, b.spec, view_seed, b.batch_size, self.workers, self.index, self.team)
        space = self._space(view_seed)
        self._spaces.add(space.key)
        return extract(job, space, self._make, progress)

    def _space(self, view_seed: tuple[int, ...] | None) -> Space:
        b = self.backbone
        describe: dict[str, Any] = {
            "backbone": b.name,
            "pixels": PIXELS_VERSION,
            "weights": self._weights,
            "image_size": b.spec.image_size,
            "resize": b.spec.resize,
            "fit": b.spec.fit,
            "mean": list(b.spec.mean),
            "std": list(b.spec.std),
            "engine": self.engine,
            "device": "cpu" if self.engine == "openvino" else b.device,
            "precision": self.precision,
            "view": "plain" if view_seed is None else list(view_seed),
        }
        if view_seed is not None:
            describe["view_version"] = VIEW_VERSION
        return Space(self.directory, describe, feature_width(b.module), STORED_AS[self.precision])

    def _make(self, receive: Receive) -> Engine:
        # Made once: OpenVINO takes seconds to convert a network, and there is a pass for every view.
        if self._engine is None:
            self._engine = self._build()
        return _OnePass(self._engine, receive)

    def _build(self) -> Engine:
        b = self.backbone
        return make_engine(
            Normalised(b.module, b.spec.mean, b.spec.std).eval(),
            engine=self.engine,
            precision=self.precision,
            device=b.device,
            batch_size=b.batch_size,
            image_size=b.spec.image_size,
            receive=_hand_over,
        )


class _OnePass:
    """A shared engine for one pass: a batch carries its receiver, so that none reaches another pass."""

    def __init__(self, engine: Engine, receive: Receive) -> None:
        self._engine, self._receive = engine, receive

    def submit(self, pixels: Pixels, tag: Any) -> None:
        self._engine.submit(pixels, (self._receive, tag))

    def finish(self) -> None:
        self._engine.finish()


def _hand_over(tag: tuple[Receive, Any], vectors: Vectors) -> None:
    receive, own = tag
    receive(own, vectors)


def inspect(
    photos: PhotoList,
    directory: Path,
    *,
    workers: int,
    progress: Progress,
    index: DigestIndex | None = None,
    team: Team = ALONE,
) -> Extracted:
    """Decode every photo once without computing anything of it; `table.status` tells what is wrong.

    For runs that read images in every epoch: they must know before the first step which photos
    cannot be decoded. The answer is cached like features, as vectors of no numbers.
    """
    space = Space(directory, {"backbone": "none", "view": "decoded at 224 pixels"}, 0, "float16")
    job = Job(photos, known_digests(photos, index), InputSpec(), None, 16, workers, index, team)
    return extract(job, space, _NoEngine, progress)


def known_digests(photos: PhotoList, index: DigestIndex | None) -> Digests:
    """Content hashes of photos as far as the index has them, bytes [N]."""
    if index is None:
        return np.full(len(photos), UNKNOWN, f"S{DIGEST_BYTES}")
    return index.look_up(photos.tags)


class _NoEngine:
    """Gives every image a vector of no numbers."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive

    def submit(self, pixels: NDArray[np.uint8], tag: Any) -> None:
        self._receive(tag, np.empty((len(pixels), 0), np.float32))

    def finish(self) -> None:
        pass
