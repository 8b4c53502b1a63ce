"""Requests/s of the original's handler under AWS's stack beside ours, interleaved; and how soon a server answers.

    python -m benchmarks.serving --fp32 R50.tar.gz --int8 R50-INT8.tar.gz --torchserve .venv-torchserve
    python -m benchmarks.serving --parts start --fp32 R50.tar.gz

The archives are what `python -m serve pack` wrote of a ResNet-50, without and with serve.precision=int8. The
environment of the stack is made by `make test-torchserve`. Needs a machine that does nothing else.

Every set-up is asked for photos of each size by each number of clients; with all of them a run takes 30 minutes.
A round starts every set-up once, in an order that is turned round in the next one, and the engines alone beside them.
Requests/s are the median of the rounds, with the lowest and the highest; percentiles are of all answers of all rounds.
An answer that is not 200 is an error, and those of ours in fp32 must first name the classes of their parity samples.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.clients import Cost, Load, drive, watched
from benchmarks.torchserve import free_ports, running_stack
from graft.artifacts import read_manifest, read_parity
from graft.environment import available_cores
from serve.archive import opened, unpack
from serve.model import ServedModel

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"500 x 375": (500, 375), "1150 x 700": (1150, 700), "4000 x 3000": (4000, 3000)}
WARM_UP_SECONDS = 1.5
# What the original deployed: eager ResNet-50 on a photo resized by Pillow, JSON of the logits.
ORIGINAL = """
import io, json
import torch, torchvision
from PIL import Image
from torchvision import transforms

def model_fn(model_dir):
    model = torchvision.models.resnet50()
    model.fc = torch.nn.Sequential(torch.nn.Linear(2048, 512), torch.nn.ReLU(), torch.nn.Linear(512, 133))
    return model.eval()

def input_fn(request_body, content_type):
    return Image.open(io.BytesIO(request_body))

def predict_fn(photo, model):
    prepare = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor()])
    with torch.no_grad():
        return model(prepare(photo).unsqueeze(0))

def output_fn(prediction, accept):
    return json.dumps(prediction.tolist())
"""

Start = Callable[[], contextlib.AbstractContextManager[tuple[int, psutil.Process]]]


@dataclass(frozen=True)
class Cell:
    """One measurement: who answered what, to how many clients."""

    setup: str
    size: str
    clients: int


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fp32", type=Path, required=True, help="model.tar.gz in fp32")
    parser.add_argument("--int8", type=Path, help="model.tar.gz in int8")
    parser.add_argument("--torchserve", type=Path, help="environment of the stack; without it the stack is left out")
    parser.add_argument("--parts", nargs="+", choices=("start", "servers"), default=["start", "servers"])
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="through all set-ups")
    parser.add_argument("--only", default="", help="set-ups whose names hold this")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="with photos of each size")
    given = parser.parse_args()
    archives = {"fp32": given.fp32} | ({"int8": given.int8} if given.int8 else {})
    if "start" in given.parts:
        for name, archive in archives.items():
            print_starts(name, archive)
    if "servers" in given.parts:
        starts = {name: start for name, start in setups(archives, given.torchserve).items() if given.only in name}
        compare(starts, archives, given.clients, given.seconds, given.rounds)


def print_starts(name: str, archive: Path, times: int = 5) -> None:
    """Seconds from the command to the first right answer, and the most memory that the server held by then."""
    seconds, megabytes = zip(*(start_once(archive) for _ in range(times)), strict=True)
    print(f"start, {name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} .. {max(seconds):.2f}), "
          f"{max(megabytes):.0f} MB at most")  # fmt: skip


def start_once(archive: Path) -> tuple[float, float]:
    """Seconds and MB of one start."""
    sample, label = expected_of(archive)[0]
    begun = time.perf_counter()
    with own_server(archive) as (port, process):
        wait_until_answered(port, sample, label)
        seconds = time.perf_counter() - begun
        status = Path(f"/proc/{process.pid}/status").read_text()
    return seconds, int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def engine_rate(archive: Path, seconds: float) -> float:
    """Photos/s of the engine on ready squares: one call on both cores, or a call on each, whichever is faster."""
    cores = available_cores()
    with opened(archive) as folder:
        return max(_engine_rate(folder, cores, streams, seconds) for streams in (1, cores))


def _engine_rate(folder: Path, threads: int, streams: int, seconds: float) -> float:
    model = ServedModel.load(folder, threads=threads, streams=streams)
    side = model.spec.image_size
    square = np.random.default_rng(0).integers(0, 255, (1, side, side, 3), np.uint8)
    for _ in range(5):
        model.engine.run(square)
    until = time.perf_counter() + seconds

    def call(_: int) -> int:
        done = 0
        while time.perf_counter() < until:
            model.engine.run(square)
            done += 1
        return done

    with ThreadPoolExecutor(streams) as pool:
        return sum(pool.map(call, range(streams))) / seconds


def setups(archives: Mapping[str, Path], environment: Path | None) -> dict[str, Start]:
    """Name -> what starts it."""
    found: dict[str, Start] = {}
    if environment:
        one = {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
        two = {"SAGEMAKER_MODEL_SERVER_WORKERS": "2", "OMP_NUM_THREADS": "1"}
        found["original, stack's defaults"] = partial(stack_of_original, environment, {})
        found["original, 1 worker x 2 threads"] = partial(stack_of_original, environment, one)
        found["original, 2 workers x 1 thread"] = partial(stack_of_original, environment, two)
        found["ours under the stack, fp32"] = partial(
            stack_of_ours, environment, archives["fp32"], {**two, "GRAFT_SERVE_THREADS": "1"}
        )
    for name, archive in archives.items():
        for mode in ("latency", "throughput"):
            found[f"our server, {name}, {mode}"] = partial(own_server, archive, f"serve.mode={mode}")
    return found


@contextlib.contextmanager
def stack_of_original(environment: Path, settings: Mapping[str, str]) -> Iterator[tuple[int, psutil.Process]]:
    """The original's handler under AWS's stack."""
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as base:
        code = Path(base) / "model" / "code"
        code.mkdir(parents=True)
        (code / "inference.py").write_text(ORIGINAL)
        with running_stack(Path(base), environment, settings) as stack:
            yield stack.port, stack.process


@contextlib.contextmanager
def stack_of_ours(
    environment: Path, archive: Path, settings: Mapping[str, str]
) -> Iterator[tuple[int, psutil.Process]]:
    """A packed model under AWS's stack."""
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as base:
        unpack(archive, Path(base) / "model")
        with running_stack(Path(base), environment, settings) as stack:
            yield stack.port, stack.process


@contextlib.contextmanager
def own_server(archive: Path, *settings: str) -> Iterator[tuple[int, psutil.Process]]:
    """`python -m serve local` as a process."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "serve", "local", f"bundle={archive}", f"serve.port={port}", *settings]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    with subprocess.Popen(command, cwd=Path.cwd(), env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()


def wait_until_answered(port: int, body: bytes, label: str | None = None, seconds: float = 60.0) -> None:
    """Ask until the answer is 200; every 10 ms, for asking takes the server's time too.

    Raises:
        TimeoutError: there is none within that time.
        ValueError: it names another class first than `label`.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("POST", "/invocations", body, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            if response.status == 200:
                return check_answer(response.read(), label)
        time.sleep(0.01)
    raise TimeoutError(f"no answer within {seconds} s")


def check_answer(body: bytes, label: str | None) -> None:
    """Whether an answer names `label` first; None is any. ValueError where it does not."""
    if label is not None and (found := json.loads(body)["predictions"][0]["label"]) != label:
        raise ValueError(f"the answer is {found}, expected is {label}")


def expected_of(archive: Path) -> list[tuple[bytes, str]]:
    """The parity samples of a packed model, and the class that the run named first for each."""
    with opened(archive) as folder:
        names = read_manifest(folder).class_names
        return [(sample.data, names[int(np.argmax(sample.logits))]) for sample in read_parity(folder)]


def photo(size: tuple[int, int]) -> bytes:
    """A JPEG of quality 90 with coarse and fine detail, of about the bytes that a photo of its size has."""
    width, height = size
    chosen = np.random.default_rng(0)
    coarse = Image.fromarray(chosen.integers(0, 255, (24, 32, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = chosen.normal(0, 6, (height, width, 1))
    picture = Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def compare(
    starts: Mapping[str, Start], archives: Mapping[str, Path], clients: Sequence[int], seconds: float, rounds: int
) -> None:
    """Measure every set-up in every round, and print the table."""
    photos = {name: photo(size) for name, size in SIZES.items()}
    small = next(iter(photos))
    measured: dict[Cell, list[tuple[Load, Cost]]] = defaultdict(list)
    engines: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        for setup, start in sorted_by_turns(starts, number):
            with start() as (port, process):
                wait_until_answered(port, photos[small])
                check_setup(setup, port, archives)
                for name, count in itertools.product(photos, clients):
                    drive(port, photos[name], count, WARM_UP_SECONDS)
                    with watched(process) as cost:
                        load = drive(port, photos[name], count, seconds)
                    measured[Cell(setup, name, count)].append((load, cost))
                    print(f"{setup}, {name}, {count} clients: {load.rate:.1f} requests/s", file=sys.stderr, flush=True)
        for name, archive in archives.items():
            engines[name].append(engine_rate(archive, seconds))
    print_table(measured)
    for name, rates in engines.items():
        print(f"engine alone, {name}: {spread(rates)} photos/s with all cores")


def sorted_by_turns(starts: Mapping[str, Start], number: int) -> list[tuple[str, Start]]:
    """The set-ups, the other way round in every other round."""
    return list(starts.items())[:: -1 if number % 2 else 1]


def check_setup(setup: str, port: int, archives: Mapping[str, Path]) -> None:
    """Ask one of ours in fp32 for its parity samples: every class must be the run's; int8 may err in a near one."""
    if setup.startswith("our") and "fp32" in setup:
        for sample, label in expected_of(archives["fp32"]):
            wait_until_answered(port, sample, label)


def print_table(measured: Mapping[Cell, Sequence[tuple[Load, Cost]]]) -> None:
    """A row for each cell."""
    print("| set-up | photos | clients | requests/s | p50 ms | p99 ms | answers | CPU ms each | most MB | errors |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for cell, runs in measured.items():
        milliseconds = [each for load, _ in runs for each in load.milliseconds]
        middle, late = np.percentile(milliseconds, (50, 99)) if milliseconds else (np.nan, np.nan)
        cpu = statistics.median(1000 * cost.seconds / max(len(load.milliseconds), 1) for load, cost in runs)
        memory = max(cost.megabytes for _, cost in runs)
        errors = sum(load.errors for load, _ in runs)
        rate = spread([load.rate for load, _ in runs])
        print(f"| {cell.setup} | {cell.size} | {cell.clients} | {rate} | {middle:.0f} | {late:.0f} "
              f"| {len(milliseconds)} | {cpu:.0f} | {memory:.0f} | {errors} |", flush=True)  # fmt: skip


def spread(rates: Sequence[float]) -> str:
    """The median, with the lowest and the highest."""
    return f"{statistics.median(rates):.1f} ({min(rates):.1f} .. {max(rates):.1f})"


if __name__ == "__main__":
    main()
