"""Records that stand in for a job with an idle GPU: `python -m tests.idle_gpu` writes them anew.

They are made up, not measured, after the figures of the original's job: a step takes 14 s at batch 128, no loader
processes, 4 cores of which half are busy, a GPU at 0 %. Twenty minutes of it, a sample every 5 s.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from graft.profiler.records import Facts, RecordWriter
from graft.profiler.stopwatch import STEP_COLUMNS

FOLDER = Path(__file__).parent / "recordings" / "idle_gpu"
FACTS = Facts(
    device="cpu",
    frozen=True,
    cached=False,
    augment=True,
    batch_size=128,
    workers=0,
    cores=4,
    photos={"train": 6680, "valid": 835, "test": 836},
    steps_per_epoch=53,
    usd_per_hour=0.736,  # ml.g4dn.xlarge, us-east-1
)
STEP_S = {"data_wait": 1.3, "forward": 12.4, "backward": 0.1, "optimiser": 0.1, "other": 0.1}
STEPS, EVERY_S = 86, 5.0


def write(run_dir: Path) -> None:
    """Write the records into the directory of a run."""
    writer, rng = RecordWriter(run_dir), np.random.default_rng(0)
    writer.write("steps", STEP_COLUMNS, steps())
    seconds = np.arange(EVERY_S, STEPS * sum(STEP_S.values()), EVERY_S)
    cores = np.clip(rng.normal(52, 3, (len(seconds), 4)), 0, 100).round(1)
    names = ["seconds", "cpu_percent", *(f"cpu{core}_percent" for core in range(4)), "iowait_percent"]
    names += ["memory_percent", "disk_read_mb_s", "disk_write_mb_s", "net_mb_s"]
    names += ["gpu0_percent", "gpu0_memory_percent", "gpu0_watts"]
    others = np.tile([0.0, 31.0, 2.0, 0.1, 0.05, 0.0, 0.0, 9.0], (len(seconds), 1))
    writer.write("samples", names, np.column_stack([seconds, cores.mean(axis=1), cores, others]).tolist())
    writer.write_session(FACTS, {phase: STEPS * spent for phase, spent in STEP_S.items()} | {"start_up": 20.0})


def steps() -> list[list[float]]:
    """Rows of `STEP_COLUMNS`."""
    spent = [STEP_S.get(column, 0.0) for column in STEP_COLUMNS[1:]]
    return [[(step + 1) * sum(spent), *spent] for step in range(STEPS)]


if __name__ == "__main__":
    for path in FOLDER.glob("profiler/*"):
        path.unlink()
    write(FOLDER)
