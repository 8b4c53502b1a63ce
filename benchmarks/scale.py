"""What a run costs beside decoding and the backbone, against the number of photos: `python -m benchmarks.scale`.

Writes N small files in class folders (they stand for photos; none is decoded, their vectors are put into the cache
before) and starts a run's data path twice in a process of its own: the first start reads and hashes every file, the
second one finds every hash in the index. Both end with the first batch of training.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

import numpy as np

from graft.data.digests import Digests, digest
from graft.features.cache import OK, Space

WIDTH = 64  # numbers per vector; of ResNet-50's 2,048 a batch reads only the rows that it shows
CLASSES = 100
FILE_BYTES = 256
STAGES = ("scan", "hash", "index", "fingerprint", "sampler", "batch")
LIMITS = {"first": 60.0, "second": 10.0}  # seconds at 1e6, on 2 cores
MEMORY_GB = 2.0


def main() -> None:
    """Print a table; exit code 1 where a limit is broken at a million."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e3, 1e4, 1e5, 1e6], help="numbers of files")
    parser.add_argument("--folder", type=Path, help="where the files are written (default: a temporary folder)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(start(arguments.measure)))
        return
    broken = []
    print(f"{'files':>9} {'start':>6} {'seconds':>8} " + "".join(f"{name:>12}" for name in STAGES) + f"{'peak GB':>9}")
    for size in map(int, arguments.sizes):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            write_files(Path(folder), size)
            for name in ("first", "second"):
                found = measure(Path(folder))
                print(row(size, name, found), flush=True)
                if size == 10**6 and (found["total"] > LIMITS[name] or found["peak_gb"] > MEMORY_GB):
                    broken.append(f"{name} start: {found['total']:.1f} s, {found['peak_gb']:.2f} GB")
    if broken:
        sys.exit(f"over the limit of {LIMITS} s and {MEMORY_GB} GB: {'; '.join(broken)}")


def write_files(folder: Path, size: int) -> None:
    """`size` files in train/ and a few in valid/, all different, and their vectors in the cache."""
    rng = np.random.default_rng(0)
    digests = []
    for split, count in (("train", size), ("valid", min(size, 1000))):
        for label in range(CLASSES):
            (folder / "data" / split / f"{label:03d}").mkdir(parents=True)
        for number in range(count):
            content = rng.bytes(FILE_BYTES)
            (folder / "data" / split / f"{number % CLASSES:03d}" / f"{number:07d}.jpg").write_bytes(content)
            digests.append(digest(content))
    space = make_space(folder)
    space.tidy()
    keys: Digests = np.array(digests, "S16")
    for at in range(0, len(keys), 100_000):
        part = keys[at : at + 100_000]
        space.append(part, np.full(len(part), OK, np.uint8), rng.random((len(part), WIDTH), np.float32))
    time.sleep(2.1)  # a file that is younger may change unseen, so its hash is not kept


def make_space(folder: Path) -> Space:
    """The cache of a backbone that is never run."""
    return Space(folder / "cache" / "features", {"backbone": "none"}, WIDTH, "float16")


def measure(folder: Path) -> dict[str, float]:
    """One start in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--measure", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def start(folder: Path) -> dict[str, float]:
    """Seconds of each stage of a start, their sum, and the peak memory in GB; imports not counted."""
    from graft.data.digests import DigestIndex, fingerprint
    from graft.data.folder import PhotoList, scan
    from graft.data.module import ImageData
    from graft.environment import available_cores
    from graft.features.compute import known_digests
    from graft.features.extract import Job, extract
    from graft.features.source import FeatureSource
    from graft.inputs import InputSpec
    from graft.stores import LocalStore

    clock = Clock()
    found = scan(LocalStore(folder / "data"))
    photos = PhotoList(found.splits())
    clock.lap("scan")
    index = DigestIndex(folder / "cache")
    known = known_digests(photos, index)
    clock.lap("index")
    job = Job(photos, known, InputSpec(), None, 16, available_cores(), index)
    looked = extract(job, make_space(folder), refuse, lambda count: None)
    clock.lap("hash")
    fingerprint(looked.digests)
    clock.lap("fingerprint")
    ends = len(found.train)
    train = FeatureSource([looked.at(looked.rows[:ends], looked.digests[:ends])], found.train.labels())
    valid = FeatureSource([looked.at(looked.rows[ends:], looked.digests[ends:])], found.valid.labels())
    data = ImageData(found.train, found.valid, spec=InputSpec(), batch_size=128, train_source=train, valid_source=valid)
    loader = data.train_dataloader()
    shown = sum(len(batch) for batch in loader.order)
    assert shown == len(found.train)
    clock.lap("sampler")
    next(iter(loader))
    clock.lap("batch")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {**clock.laps, "total": sum(clock.laps.values()), "peak_gb": peak}


class Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End one."""
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def refuse(receive: object) -> NoReturn:
    """No vector is missing, so no engine is made."""
    raise AssertionError("a vector was missing")


def row(size: int, name: str, found: dict[str, float]) -> str:
    """One line of the table."""
    cells = "".join(f"{found[stage]:12.2f}" for stage in STAGES)
    return f"{size:9,} {name:>6} {found['total']:8.2f} {cells}{found['peak_gb']:9.2f}"


if __name__ == "__main__":
    main()
