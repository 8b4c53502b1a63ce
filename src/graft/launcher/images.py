"""The container of a job or an endpoint: the one that is given, or AWS's for PyTorch that SageMaker's SDK knows of."""

from __future__ import annotations

from graft.config import Config
from graft.errors import ConfigError

_FRAMEWORK = "pytorch"


def find_image(config: Config, region: str) -> str:
    """URI of the container that jobs of this configuration run in: `launcher.image`, or the newest for training.

    Raises:
        ConfigError: none is given, and the SDK is not installed or knows none for the region or the machine.
    """
    c = config.launcher
    return c.image or look_up("launcher.image", region, c.instance_type, "training")


def look_up(key: str, region: str, instance_type: str, use: str, version: str | None = None) -> str:
    """URI of AWS's container, which differs from version to version, so that the SDK's table is asked.

    Args:
        key: of the configuration, which names another container.
        region: of the account.
        instance_type: of the machine.
        use: training or inference.
        version: of PyTorch, as 2.6.0; None for the newest.

    Raises:
        ConfigError: the SDK is not installed, or knows none for the region or the machine.
    """
    try:
        from sagemaker.core import image_uris
    except ImportError as error:
        raise ConfigError(
            f"{key}=null: the container is looked up by SageMaker's SDK, which is not installed; "
            f"pip install 'graft[aws]', or give {key}=URI of a PyTorch {use} container"
        ) from error
    versions = image_uris.config_for_framework(_FRAMEWORK)[use]["versions"]
    version = version or max(versions, key=_as_numbers)
    try:
        return str(
            image_uris.retrieve(
                _FRAMEWORK,
                region,
                version=version,
                py_version=versions[version]["py_versions"][-1],
                instance_type=instance_type,
                image_scope=use,
            )
        )
    except ValueError as error:
        raise ConfigError(
            f"{key}=null: no container is known for {instance_type} in {region} "
            f"({str(error).splitlines()[0]}); give {key}=URI"
        ) from error


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
