"""Who runs the training: this process, or (in a later release) a SageMaker job."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from graft.config import Config, LauncherKind
from graft.errors import ConfigError

Result = TypeVar("Result")


def launch(config: Config, train: Callable[[Config], Result]) -> Result:
    """Run `train(config)` where the configuration says.

    Raises:
        ConfigError: the launcher is not in this release.
    """
    if config.launcher.kind is LauncherKind.sagemaker:
        raise ConfigError(
            "launcher.kind=sagemaker (chosen by trainer=sagemaker_*) comes with a later release; "
            "accepted now: trainer=auto, cpu or gpu"
        )
    return train(config)
