"""The container of a job: `launcher.image`, or AWS's newest for PyTorch that SageMaker's SDK knows of."""

from __future__ import annotations

from graft.config import Config
from graft.errors import ConfigError

# Both differ from version to version, so the SDK's table is asked (docs/decisions/0018).
_FRAMEWORK, _USE = "pytorch", "training"


def find_image(config: Config, region: str) -> str:
    """URI of the container that jobs of this configuration run in.

    Raises:
        ConfigError: none is given, and the SDK is not installed or knows none for the region or the machine.
    """
    if config.launcher.image:
        return config.launcher.image
    try:
        from sagemaker.core import image_uris
    except ImportError as error:
        raise ConfigError(
            "launcher.image=null: the container is looked up by SageMaker's SDK, which is not installed; "
            "pip install 'graft[aws]', or give launcher.image=URI of a PyTorch training container"
        ) from error
    versions = image_uris.config_for_framework(_FRAMEWORK)[_USE]["versions"]
    version = max(versions, key=_as_numbers)
    try:
        return str(
            image_uris.retrieve(
                _FRAMEWORK,
                region,
                version=version,
                py_version=versions[version]["py_versions"][-1],
                instance_type=config.launcher.instance_type,
                image_scope=_USE,
            )
        )
    except ValueError as error:
        raise ConfigError(
            f"launcher.image=null: no container is known for {config.launcher.instance_type} in {region} "
            f"({str(error).splitlines()[0]}); give launcher.image=URI"
        ) from error


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
