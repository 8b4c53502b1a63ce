"""An exported network in int8: calibrated on training photos, and judged on valid before anybody serves it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from graft.data.folder import Folder, Split
from graft.errors import DataError, RunError
from graft.images import ImageError, Pixels, render
from graft.inputs import InputSpec
from graft.openvino_core import core

if TYPE_CHECKING:
    import openvino as ov

VALID_PHOTOS = 5000  # that the loss is measured on, at most: its standard error is then below 0.7 points

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Quantised:
    """A network in int8, and what that cost.

    Attributes:
        model: the network.
        figures: valid_accuracy_fp32 and valid_accuracy_int8 in 0..1, points_lost in 0..100 (negative where int8 is
            better), same_answer in 0..1, valid_photos and calibration_photos.
    """

    model: ov.Model
    figures: dict[str, float]


def quantise(
    model: ov.Model, folder: Folder, spec: InputSpec, *, photos: int, margin: float, advance: Advance = lambda n: None
) -> Quantised:
    """Turn a network into int8 by NNCF's post-training quantisation, unless that loses too much.

    Args:
        model: fp32, uint8 [B, S, S, 3] -> logits, features.
        folder: of the run's photos.
        spec: what the network expects.
        photos: of train to calibrate on.
        margin: points of valid accuracy, 0..100, that it may lose.
        advance: told of every photo that is done, `steps` of them.

    Raises:
        RunError: it loses more.
        DataError: no photo can be decoded.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    batches = []
    for _, image in images_of(folder.train, photos, spec):
        batches.append(image[np.newaxis])
        advance(1)
    if not batches:
        raise DataError(f"{folder.location}: no photo of train can be decoded, so int8 cannot be calibrated")
    quantised = nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))
    figures = compare(model, quantised, folder.valid, spec, advance) | {"calibration_photos": float(len(batches))}
    if figures["points_lost"] > margin:
        raise RunError(
            f"serve.precision=int8 loses {in_words(figures)}, more than serve.int8_margin={margin:g}; nothing was "
            "packed: give serve.precision=fp32, more serve.int8_photos, or a larger margin"
        )
    return Quantised(quantised, figures)


def in_words(figures: dict[str, float]) -> str:
    """What int8 loses."""
    before, after = figures["valid_accuracy_fp32"], figures["valid_accuracy_int8"]
    points, photos = figures["points_lost"], figures["valid_photos"]
    return f"{points:.2f} points of accuracy on {photos:.0f} valid photos ({before:.4f} to {after:.4f})"


def steps(folder: Folder, photos: int) -> int:
    """How often `quantise` advances."""
    return min(photos, len(folder.train)) + min(VALID_PHOTOS, len(folder.valid))


def compare(
    reference: ov.Model, quantised: ov.Model, valid: Split, spec: InputSpec, advance: Advance
) -> dict[str, float]:
    """Accuracies of two networks on the same valid photos."""
    ask = [classify(reference), classify(quantised)]
    labels = valid.labels()
    answers = []
    for index, image in images_of(valid, VALID_PHOTOS, spec):
        answers.append((labels[index], *(answer(image) for answer in ask)))
        advance(1)
    if not answers:
        raise DataError(f"{valid.location}: no photo can be decoded, so int8 cannot be judged")
    truth, before, after = np.array(answers).T
    accuracy = [float((truth == said).mean()) for said in (before, after)]
    return {
        "valid_accuracy_fp32": accuracy[0],
        "valid_accuracy_int8": accuracy[1],
        "points_lost": 100 * (accuracy[0] - accuracy[1]),
        "same_answer": float((before == after).mean()),
        "valid_photos": float(len(answers)),
    }


def images_of(split: Split, most: int, spec: InputSpec) -> Iterator[tuple[int, Pixels]]:
    """Indices and squares uint8 [S, S, 3] of `most` photos at random, in their order; damaged ones are left out."""
    chosen = np.arange(len(split))
    if most < len(split):
        chosen = np.sort(np.random.default_rng(0).choice(len(split), most, replace=False))
    for index in chosen.tolist():
        try:
            yield index, render(split.read(index), spec).pixels
        except ImageError:
            continue


def classify(model: ov.Model) -> Callable[[Pixels], int]:
    """The network as a function from one square to the index of its likeliest class."""
    request = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()

    def answer(image: Pixels) -> int:
        logits: NDArray[np.float32] = request.infer({0: image[np.newaxis]})[0]
        return int(logits[0].argmax())

    return answer
