"""Photos a second from JPEG files to features of ResNet-50: ours beside the usual ways, on this machine.

    python -m benchmarks.features [--photos DIR] [--rounds 5] [--seconds 4]

Photos are taken from DIR (any folder tree) or drawn, brought to each size and saved as JPEG of
quality 90. Every way lives in a process of its own and runs for about `seconds` in every round, in
turn, while the others wait; figures are medians over the rounds. Time to get ready (imports, model,
conversion) is not part of the rate and stands beside it. Memory is the peak of the process plus those
of its loader workers; pages that they share count in each.

The ways: `plain` is what a tutorial does (PIL ImageFolder, DataLoader without workers, eager fp32,
batch 32); `reference` is torchvision's reference style (loader workers, channels_last, autocast to
bf16); `decoding alone` is ours without an engine; `engine alone` is the fastest engine on tensors
that are ready; `ours` is the feature cache, hashing, decoding and writing shards included.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SIZES = ((500, 375), (1000, 750))
WAYS = ("plain", "reference", "decoding alone", "engine alone", "ours")
BATCH = 32
# Goals where the CPU has bf16: (ours / plain, ours / engine alone) by photo size.
GOALS = {(500, 375): (5.0, 0.85), (1000, 750): (4.5, 0.75)}

Round = Callable[[float], float]  # seconds to run -> images per second


@dataclass(frozen=True)
class Figure:
    """One way at one photo size: images/s of every round, seconds to get ready, peak memory in MB.

    `busy` is the share of time the GPU computed, 0..1, of every round; empty without a GPU.
    """

    rates: list[float]
    busy: list[float]
    ready: float
    memory: float

    @property
    def rate(self) -> float:
        """The median, images/s."""
        return statistics.median(self.rates)


def main() -> None:
    """Draw the photos, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos to re-encode; drawn ones if not given")
    parser.add_argument("--count", type=int, default=1024, help="photos of each size")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each way in each round")
    arguments = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as folder:
        for size in SIZES:
            root = Path(folder) / f"{size[0]}x{size[1]}"
            write_photos(root, size, arguments.photos, arguments.count)
            figures = measure(root, arguments.rounds, arguments.seconds)
            show(console, size, figures)


def write_photos(root: Path, size: tuple[int, int], source: Path | None, count: int) -> None:
    """`count` JPEGs of one size, no two alike, in one class folder."""
    from benchmarks.decode import as_jpeg, load_photos

    (root / "photos").mkdir(parents=True)
    pictures = load_photos(source, min(count, 256))
    for number, picture in zip(range(count), itertools.cycle(pictures), strict=False):
        # A pixel that counts up keeps photos apart that come from the same picture.
        picture.putpixel((0, 0), (number % 256, number // 256, 0))
        (root / "photos" / f"{number:05d}.jpg").write_bytes(as_jpeg(picture, size) + number.to_bytes(4, "big"))


def measure(root: Path, rounds: int, seconds: float) -> dict[str, Figure]:
    """All ways in turn, `rounds` times."""
    context = multiprocessing.get_context("spawn")
    workers: dict[str, tuple[Any, Connection]] = {}
    try:
        ready = {}
        for way in WAYS:
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(way, root, there))
            process.start()
            there.close()  # the worker's copy is the last one: if it dies, `here` ends
            workers[way] = (process, here)
            ready[way] = answer(way, here)
        pipes = {way: pipe for way, (_, pipe) in workers.items()}
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        busy: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, pipe in pipes.items():
                with gpu_busy(busy[way]):
                    rates[way].append(answer(way, pipe, seconds))
        memory = {way: answer(way, pipe, None) for way, pipe in pipes.items()}
        for process, _ in workers.values():
            process.join()
    finally:
        for process, _ in workers.values():
            process.terminate()
    return {way: Figure(rates[way], busy[way], ready[way], memory[way]) for way in WAYS}


def answer(way: str, pipe: Connection, *question: float | None) -> float:
    """The next number from a worker, after the question if there is one."""
    try:
        for part in question:
            pipe.send(part)
        number: float = pipe.recv()
    except (EOFError, ConnectionError):
        raise SystemExit(f"the process of `{way}` ended before it answered; its own words stand above") from None
    return number


@contextmanager
def gpu_busy(shares: list[float]) -> Iterator[None]:
    """Append the mean GPU utilisation of the block, 0..1, sampled every 100 ms by nvidia-smi; nothing without it."""
    if shutil.which("nvidia-smi") is None:
        yield
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as sampler:
        try:
            yield
        finally:
            sampler.terminate()
            lines = sampler.communicate()[0].splitlines()
    samples = [float(line) for line in lines if line.strip().isdecimal()]  # some GPUs say [N/A]
    shares += [statistics.mean(samples) / 100] if samples else []


def serve(way: str, root: Path, pipe: Connection) -> None:
    """One way in its own process: get ready, then a round for every number of seconds received."""
    started = time.perf_counter()
    run = {
        "plain": plain,
        "reference": reference,
        "decoding alone": decoding_alone,
        "engine alone": engine_alone,
        "ours": ours,
    }[way](root)
    run(0.0)  # the first batch allocates
    pipe.send(time.perf_counter() - started)
    while (seconds := pipe.recv()) is not None:
        pipe.send(run(seconds))
    pipe.send(peak_megabytes())


def peak_megabytes() -> float:
    """The peaks of this process and of its live children added up; without /proc, of this process alone."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    children = (Path(f"/proc/{child.pid}/status") for child in multiprocessing.active_children())
    lines = [line for status in children if status.exists() for line in status.read_text().splitlines()]
    return own + sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10


def plain(root: Path) -> Round:
    """ImageFolder through PIL, no workers, eager fp32."""
    return _loop(root, workers=0, tuned=False)


def reference(root: Path) -> Round:
    """Loader workers, channels_last, autocast."""
    return _loop(root, workers=_cores(), tuned=True)


def _loop(root: Path, workers: int, tuned: bool) -> Round:
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder
    from torchvision.models import resnet50

    device = _device()
    model = resnet50().eval().to(device)
    model.fc = torch.nn.Identity()
    if tuned:
        model = model.to(memory_format=torch.channels_last)
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    photos = ImageFolder(str(root), transforms.Compose([*steps, normalise]))
    loader = DataLoader(photos, BATCH, num_workers=workers, persistent_workers=workers > 0)

    def run(seconds: float) -> float:
        done, started = 0, 0.0
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=tuned):
            for images, _ in itertools.chain.from_iterable(itertools.repeat(loader)):
                if tuned:
                    images = images.contiguous(memory_format=torch.channels_last)
                model(images.to(device)).cpu()
                # The clock starts after the first batch, so that waking the workers is not counted.
                done, started = (done + len(images), started) if started else (0, time.perf_counter())
                if done and time.perf_counter() - started >= seconds:
                    return done / (time.perf_counter() - started)
        raise AssertionError("an endless loader ended")

    return run


def engine_alone(root: Path) -> Round:
    """The engine of the feature cache, fed with the same ready batch again and again."""
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 256, (_settings()["batch_size"], 224, 224, 3), np.uint8)
    engine = _engine(lambda tag, vectors: None)

    def run(seconds: float) -> float:
        started, done = time.perf_counter(), 0
        while not done or time.perf_counter() - started < seconds:
            engine.submit(pixels, None)
            done += len(pixels)
        engine.finish()
        return done / (time.perf_counter() - started)

    return run


def ours(root: Path) -> Round:
    """The feature cache from files to shards, into a new cache every time it has gone through the photos."""
    relay: list[Any] = []
    engine = _engine(lambda tag, vectors: relay[-1](tag, vectors))

    def make(receive: Any) -> Any:
        relay[:] = [receive]
        return engine

    return _passes(root, make)


def decoding_alone(root: Path) -> Round:
    """The same without an engine: what the processor could feed if computing cost nothing."""
    import numpy as np

    class Nothing:
        def __init__(self, receive: Any) -> None:
            self.receive = receive

        def submit(self, pixels: Any, tag: Any) -> None:
            self.receive(tag, np.zeros((len(pixels), 2048), np.float32))

        def finish(self) -> None: ...

    return _passes(root, Nothing)


def _passes(root: Path, make: Any) -> Round:
    import numpy as np

    from graft.data.digests import UNKNOWN
    from graft.data.folder import PhotoList, Split
    from graft.features.cache import Space
    from graft.features.extract import Job, extract
    from graft.model import input_spec
    from graft.stores import LocalStore

    names = tuple(sorted(path.name for path in (root / "photos").iterdir()))
    photos = PhotoList([Split("train", LocalStore(root), "photos", names, ())])
    spec = input_spec("resnet50", "imagenet1k_v1")

    def run(seconds: float) -> float:
        started, done = time.perf_counter(), 0
        while not done or time.perf_counter() - started < seconds:
            with tempfile.TemporaryDirectory(dir=root) as folder:
                unknown = np.full(len(photos), UNKNOWN, "S16")
                job = Job(photos, unknown, spec, None, _settings()["batch_size"], _cores())
                space = Space(Path(folder), {"backbone": "resnet50"}, 2048, "float16")
                done += extract(job, space, make, lambda count: None).computed
        return done / (time.perf_counter() - started)

    return run


def _engine(receive: Any) -> Any:
    from graft.features.engines import Normalised, make_engine, resolve
    from graft.model import build_backbone, input_spec

    spec, device = input_spec("resnet50", "imagenet1k_v1"), _device()
    network = Normalised(build_backbone("resnet50"), spec.mean, spec.std).eval()
    engine, precision = resolve("auto", "auto", device)
    return make_engine(
        network, engine=engine, precision=precision, device=device, image_size=224, receive=receive, **_settings()
    )


def _settings() -> dict[str, int]:
    from graft.config import FeaturesConfig

    return {"batch_size": FeaturesConfig().batch_size}


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _cores() -> int:
    from graft.environment import available_cores

    return available_cores()


def show(console: Console, size: tuple[int, int], figures: dict[str, Figure]) -> None:
    """The table of one photo size, with ratios and what limits ours."""
    base, engine, mine = (figures[way].rate for way in ("plain", "engine alone", "ours"))
    table = Table(title=f"ResNet-50, photos of {size[0]} x {size[1]}, {_cores()} cores, {_device()}")
    for column in ("way", "images/s", "lowest .. highest", "of plain", "of engine", "ready in s", "peak MB"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, figure in figures.items():
        spread = f"{min(figure.rates):.1f} .. {max(figure.rates):.1f}"
        ratios = f"{figure.rate / base:.2f}", f"{figure.rate / engine:.2f}"
        table.add_row(way, f"{figure.rate:.1f}", spread, *ratios, f"{figure.ready:.1f}", f"{figure.memory:.0f}")
    console.print(table)
    limit = "decoding" if figures["decoding alone"].rate < engine else "the engine"
    if figures["ours"].busy:
        shares = (f"{way} {statistics.median(figure.busy):.0%}" for way, figure in figures.items() if figure.busy)
        console.print(f"GPU busy: {', '.join(shares)}", highlight=False)
    # Medians of ratios within a round: both ran within seconds of each other on a machine that drifts.
    over_plain, over_engine = (
        statistics.median(a / b for a, b in zip(figures["ours"].rates, figures[way].rates, strict=True))
        for way in ("plain", "engine alone")
    )
    goal = GOALS[size]
    console.print(
        f"ours over plain {over_plain:.2f} (goal {goal[0]}), over the engine alone {over_engine:.2f} (goal {goal[1]}); "
        f"the slower half is {limit}; {mine:.0f} images/s in all\n",
        highlight=False,
    )


if __name__ == "__main__":
    main()
