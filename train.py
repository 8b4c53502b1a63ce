"""Train an image classifier: `python train.py data=folder data.root=PATH`; `--help` lists every key."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

STARTED = time.perf_counter()
# How long idle torch threads spin before they sleep; the default is for ever. On 2 cores a step of a head takes
# 3 ms; beside one busy process 58 ms by default and 9 ms with this. Must be set before torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import hydra  # noqa: E402  (the clock starts before the first slow import)
from omegaconf import DictConfig  # noqa: E402

from graft.command import overrides_given, prepare  # noqa: E402
from graft.config import Config, parse, sweep_member  # noqa: E402
from graft.launcher import finish_sweep, launch  # noqa: E402
from graft.startup import without_collecting  # noqa: E402
from graft.terminal import plain_errors, run_table, sweep_table  # noqa: E402

if TYPE_CHECKING:
    from graft.trainer import RunResult


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(tree: DictConfig) -> None:
    """Compose, check, run, print; under -m once per combination."""
    member = sweep_member()
    with plain_errors(member or str(tree.run_dir), in_sweep=member is not None):
        config = parse(tree)
        result = launch(config, train)
        if result and result.metrics:
            run_table(
                result.run_dir,
                result.metrics,
                toy=result.toy,
                remarks=result.remarks,
                findings=result.findings,
                costs=result.costs,
                report=result.report,
            )


def train(config: Config) -> RunResult:
    """Train in this process. torch is imported only now, when the configuration is known to be right."""
    with without_collecting():
        from graft import trainer
    return trainer.train(config, overrides_given(), None if sweep_member() else STARTED)


if __name__ == "__main__":
    with plain_errors():
        command = prepare(sys.argv[1:], now=time.strftime("%Y-%m-%d_%H-%M-%S"), conf=Path(__file__).with_name("conf"))
    sys.argv[1:] = command.argv
    main()
    if command.multirun:
        sweep_dir = Path(command.run_dir)
        with plain_errors(sweep_dir):
            has_runs = finish_sweep(sweep_dir)
        sys.exit(0 if not has_runs or sweep_table(sweep_dir) else 1)
