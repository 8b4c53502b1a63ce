"""Who runs the training: this process, several that torchrun starts, or (in a later release) a SageMaker job."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from graft.command import same_command
from graft.config import Config, LauncherKind
from graft.errors import ConfigError
from graft.launcher.torchrun import run_together

Result = TypeVar("Result")


def launch(config: Config, train: Callable[[Config], Result]) -> Result | None:
    """Run `train(config)` where the configuration says.

    Returns:
        What `train` gave; None where other processes ran it, the first of which has told the person all.

    Raises:
        ConfigError: the launcher is not in this release, or only the person can start the processes.
        SystemExit: another process failed, and has said why.
    """
    if config.launcher.kind is LauncherKind.sagemaker:
        raise ConfigError(
            "launcher.kind=sagemaker (chosen by trainer=sagemaker_*) comes with a later release; "
            "accepted now: trainer=auto, cpu, gpu or ddp"
        )
    started = os.environ.get("WORLD_SIZE") if "TORCHELASTIC_RUN_ID" in os.environ else None
    if started is not None and int(started) != config.processes:
        raise ConfigError(
            f"trainer.devices={config.trainer.devices} x trainer.num_nodes={config.trainer.num_nodes}: torchrun "
            f"started {started} processes; accepted are as many as it starts (--nproc-per-node x --nnodes)"
        )
    if started is not None or config.processes == 1:
        return train(config)
    if config.trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={config.trainer.num_nodes}: start this on every machine, numbered from 0: torchrun "
            f"--nnodes={config.trainer.num_nodes} --node-rank=NUMBER --nproc-per-node={config.trainer.devices} "
            "--master-addr=MACHINE_0 --master-port=29400 train.py ... run_dir=PATH"
        )
    run_together(same_command(config), config.trainer.devices)
    return None
