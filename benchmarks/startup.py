"""How soon a command answers that has nothing to train: `--help` and a misspelt key, on this machine.

    python -m benchmarks.startup [--rounds 5]

Whole processes, one after another, each command once a round: the seconds of the median round, and the processor's.
The line to hold is 1.5 s a command; torch alone would take more.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    ("train.py", "--help"),
    ("train.py", "optim.lrr=1"),
    ("train.py", "data.balance=both"),
    ("tune.py", "--help"),
    ("tune.py", "search.trails=8"),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command (default 5)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        took = [[answer_seconds(Path(folder), *command) for command in COMMANDS] for _ in range(rounds)]
    table = Table("command", "s, median", "slowest", "processor s, median")
    for number, command in enumerate(COMMANDS):
        wall, processor = zip(*(of_round[number] for of_round in took), strict=True)
        figures = (statistics.median(wall), max(wall), statistics.median(processor))
        table.add_row("python " + " ".join(command), *(f"{seconds:.2f}" for seconds in figures))
    Console(width=120, highlight=False).print(table)


def answer_seconds(cwd: Path, script: str, argument: str) -> tuple[float, float]:
    """Wall and processor seconds of one process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, ROOT / script, argument], cwd=cwd, capture_output=True, check=False)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
