"""`python -m serve bench`: how many photos a model answers in a second on this machine, and where the time goes."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image

from serve.arguments import bundle_of, read_arguments
from serve.checking import load_model
from serve.reading import Limits, decode

SECONDS = 3.0  # of each measurement
SIZES = ((500, 375), (1150, 700), (4000, 3000))  # of photos from the web, and from a phone
LIMITS = Limits()


def bench(argv: Sequence[str]) -> None:
    """Time the engine on ready squares, and decoding by size, one photo after the other."""
    arguments = read_arguments(argv, places=("bundle",))
    with load_model(arguments) as model:
        side = model.spec.image_size
        square = np.zeros((1, side, side, 3), np.uint8)
        engine = milliseconds(lambda: model.predict(square))
        print(f"{bundle_of(arguments)}, {model.engine.precision}: {engine:.1f} ms a photo in the engine, all cores")
        for size in SIZES:
            decoding = milliseconds(partial(decode, drawn(size), model.spec, LIMITS))
            whole = f"{1000 / (engine + decoding):.1f} photos/s one after the other"
            print(f"{size[0]} x {size[1]}: {decoding:.1f} ms to decode on one core; {whole}")


def milliseconds(work: Callable[[], object], seconds: float = SECONDS) -> float:
    """The median time of a call, of as many as fit into the time; at least three, the first of which warms up."""
    work()
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while len(taken) < 2 or time.perf_counter() < until:
        begun = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken)


def drawn(size: tuple[int, int]) -> bytes:
    """A JPEG of coarse detail in the given width and height."""
    coarse = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
