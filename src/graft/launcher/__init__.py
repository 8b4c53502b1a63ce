"""Who runs the training: this process, several that torchrun starts, or a SageMaker job."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from graft.command import hydra_launcher, overrides_given, same_command
from graft.config import Config, LauncherKind, sweep_member
from graft.errors import ConfigError
from graft.launcher.job import Entry
from graft.launcher.torchrun import run_together
from graft.terminal import say

Result = TypeVar("Result")


def launch(
    config: Config, run: Callable[[Config], Result], entry: Entry = Entry.train, trials: int = 1
) -> Result | None:
    """Run `run(config)` where the configuration says.

    Args:
        config: of a run or a search.
        run: does it in this process.
        entry: which of the two it is.
        trials: of a search.

    Returns:
        What `run` gave; None where other processes or a job ran it, and the person has been told all.

    Raises:
        GraftError: the configuration cannot be launched, or the job failed.
        SystemExit: another process failed, and has said why.
    """
    if config.launcher.kind is LauncherKind.sagemaker:
        _refuse_parallel_sweep()
        from graft.launcher.cloud import Work, run_in_cloud

        run_in_cloud(Work(config, entry, overrides_given(), trials))
        return None
    if config.launcher.plan:
        raise ConfigError("launcher.plan=true is of jobs; accepted with trainer=sagemaker_cpu, _gpu or _ddp")
    started = os.environ.get("WORLD_SIZE") if "TORCHELASTIC_RUN_ID" in os.environ else None
    if started is not None and int(started) != config.processes:
        raise ConfigError(
            f"trainer.devices={config.trainer.devices} x trainer.num_nodes={config.trainer.num_nodes}: torchrun "
            f"started {started} processes; accepted are as many as it starts (--nproc-per-node x --nnodes)"
        )
    if started is not None or config.processes == 1:
        return run(config)
    if config.trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={config.trainer.num_nodes}: start this on every machine, numbered from 0: torchrun "
            f"--nnodes={config.trainer.num_nodes} --node-rank=NUMBER --nproc-per-node={config.trainer.devices} "
            "--master-addr=MACHINE_0 --master-port=29400 train.py ... run_dir=PATH"
        )
    run_together(same_command(config), config.trainer.devices)
    return None


def _refuse_parallel_sweep() -> None:
    """Refuse to submit jobs from several processes at once: none would count those of the others."""
    launcher = hydra_launcher()
    if sweep_member() and launcher != "basic":
        raise ConfigError(
            f"hydra/launcher={launcher}: its processes would submit jobs without counting each other's, beyond "
            "launcher.max_parallel and budget.usd; accepted is basic: the jobs run beside each other anyway, "
            "launcher.max_parallel at a time"
        )


def finish_sweep(sweep_dir: Path) -> bool:
    """Wait for the jobs of a sweep, where there are any, and fetch their runs.

    Returns:
        Whether there are runs to show: there are none of a sweep that was only planned, or whose jobs go on.

    Raises:
        CloudError: AWS cannot be asked.
        ConfigError: the jobs were only planned, and may cost more than `budget.usd` together.
    """
    from graft.launcher.planned import tell_planned

    tell_planned(sweep_dir)
    if not any(sweep_dir.glob("*/*.json")):
        return False
    if not any(sweep_dir.glob("*/job.json")):
        return True
    from graft.launcher.cloud import conclude_member
    from graft.launcher.sweep import follow_sweep, going_on, submitted

    active = submitted(sweep_dir)
    if any(not ticket.followed for ticket in active.values()):
        say(going_on(active, sweep_dir))
        return False
    follow_sweep(sweep_dir, conclude_member)
    return True
