"""What SageMaker's toolkit runs in a training job: graft_job.yaml beside this file says what."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

STARTED = time.perf_counter()
HERE = Path(__file__).resolve().parent
# The code that came with the job, not what its container may have.
sys.path.insert(0, str(HERE / "src"))
# See train.py. Must be set before torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from graft.artifacts import read_manifest, read_state, write_manifest  # noqa: E402
from graft.command import SearchLine  # noqa: E402
from graft.config import Config  # noqa: E402
from graft.launcher.container import run_job, tell  # noqa: E402
from graft.launcher.job import JOB_FILE, Entry, read_job  # noqa: E402
from graft.startup import without_collecting  # noqa: E402
from graft.storage import write_atomic  # noqa: E402


def train(config: Config, overrides: tuple[str, ...], model: Path) -> dict[str, float]:
    """One run, as train.py does it, and its model to deploy."""
    with without_collecting():
        from graft import trainer
        from graft.callbacks import EpochMetrics

    run_dir = Path(config.run_dir)
    if read_state(run_dir).get("state") == "finished":  # it was interrupted while the service kept its files
        metrics: dict[str, float] = json.loads((run_dir / "metrics.json").read_text())
    else:
        metrics = trainer.train(config, overrides, STARTED, [EpochMetrics(tell)]).metrics
    if metrics:
        _provide(run_dir / "bundle", model)
    return metrics


def tune(config: Config, overrides: tuple[str, ...], model: Path) -> dict[str, float]:
    """A whole search, as tune.py does it, and the model of its best trial to deploy."""
    with without_collecting():
        from graft.search import search as story
        from graft.search.publish import publish
        from graft.search.space import read_space
        from graft.search.summary import print_summary
        from graft.trainer import train

    space = read_space(config, SearchLine([], {}, frozenset()))
    result = story.search(config, space, train, overrides, STARTED)
    print_summary(result, publish(result))
    _provide(result.retrained.run_dir / "bundle", model)
    return result.retrained.metrics


def _provide(bundle: Path, model: Path) -> None:
    """Put what `python -m serve pack` would archive into the folder that the service archives.

    Its manifest names the photos by the place that the user gave, not by the one that this machine had them at.
    """
    from graft.export import export
    from serve.archive import code_files

    manifest, root = read_manifest(bundle), read_job(HERE / JOB_FILE).values["data.root"]
    write_manifest(bundle, replace(manifest, data={**manifest.data, "root": root}))
    with tempfile.TemporaryDirectory() as temporary:
        exported = Path(temporary) / "model"
        export(bundle, exported)
        shutil.copytree(exported, model, dirs_exist_ok=True)
    for name, content in code_files().items():
        write_atomic(model / name, content)


if __name__ == "__main__":
    run_job(HERE, {Entry.train: train, Entry.tune: tune})
