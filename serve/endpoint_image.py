"""The container of an endpoint: `serve.image`, or AWS's last one for PyTorch that serves."""

from __future__ import annotations

from graft.config import Config
from graft.errors import ConfigError

# Of 2.6.0 on no later version serves (docs/decisions/0022).
VERSION, PYTHON = "2.6", "py312"


def find_serving_image(config: Config, region: str) -> str:
    """URI of the container.

    Raises:
        ConfigError: none is given, and SageMaker's SDK is not installed or knows none for the region or the machine.
    """
    if config.serve.image:
        return config.serve.image
    try:
        from sagemaker.core import image_uris
    except ImportError as error:
        raise ConfigError(
            "serve.image=null: the container is looked up by SageMaker's SDK, which is not installed; "
            "pip install 'graft[aws]', or give serve.image=URI"
        ) from error
    try:
        return str(
            image_uris.retrieve(
                "pytorch",
                region,
                version=VERSION,
                py_version=PYTHON,
                instance_type=config.serve.instance_type,
                image_scope="inference",
            )
        )
    except ValueError as error:
        raise ConfigError(
            f"serve.image=null: no container is known for {config.serve.instance_type} in {region} "
            f"({str(error).splitlines()[0]}); give serve.image=URI"
        ) from error
