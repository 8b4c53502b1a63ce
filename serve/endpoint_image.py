"""The container of an endpoint: `serve.image`, or AWS's last one for PyTorch that serves."""

from __future__ import annotations

from graft.config import Config
from graft.launcher.images import look_up

VERSION = "2.6.0"  # no later one serves (docs/decisions/0022)


def find_serving_image(config: Config, region: str) -> str:
    """URI of the container.

    Raises:
        ConfigError: none is given, and SageMaker's SDK is not installed or knows none for the region or the machine.
    """
    serve = config.serve
    return serve.image or look_up("serve.image", region, serve.instance_type, "inference", VERSION)
