"""Where jobs of an account run and what they write to: found in the configuration, or asked for all at once."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from graft.config import Config, DataKind
from graft.errors import ConfigError
from graft.storage import s3_uri

OURS = ("project", "graft")  # the tag by which everything of this project is found
DEPLOYMENT = "deployment"  # the tag that tells what one `serve deploy` made from what another did
_RESERVED = (OURS[0], DEPLOYMENT)


@dataclass(frozen=True)
class Account:
    """What requests say of the account.

    Attributes:
        role: ARN of the role that jobs act under.
        region: such as us-east-1.
        bucket: name of the S3 bucket, without s3://.
        prefix: folder in it, without slashes at its ends; may be empty.
        image: URI of the container.
        tags: on everything that is created.
    """

    role: str
    region: str
    bucket: str
    prefix: str
    image: str
    tags: tuple[tuple[str, str], ...] = ()

    def uri(self, *parts: str) -> str:
        """A place below the prefix: s3://BUCKET/PREFIX/PART/PART."""
        return s3_uri(self.bucket, self.prefix, *parts)


def found_region(config: Config) -> str | None:
    """The region of the configuration, of the environment, or of the profile in ~/.aws; None where none is set."""
    if config.launcher.region:
        return config.launcher.region
    from_environment = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if from_environment:
        return from_environment
    try:
        from botocore.session import get_session
    except ImportError:
        return None
    region = get_session().get_config_variable("region")
    return str(region) if region else None


def missing(config: Config) -> list[str]:
    """What a job needs and the configuration lacks: a line each, with the command that supplies it."""
    return list(_missing(config))


def _missing(config: Config) -> Iterator[str]:
    c = config.launcher
    bucket = c.bucket or "BUCKET"
    if not c.role:
        yield (
            "launcher.role=ARN, the IAM role that jobs act under: aws iam get-role --role-name graft --query Role.Arn "
            "(docs/sagemaker.md makes one)"
        )
    if not found_region(config):
        yield "launcher.region=REGION: aws configure set region us-east-1"
    if not c.bucket:
        yield "launcher.bucket=BUCKET, for source, checkpoints and results: aws s3 mb s3://BUCKET"
    if config.data.kind is DataKind.folder and not config.data.root.startswith("s3://"):
        sends = " && ".join(_that_send_photos(config, f"s3://{bucket}/photos"))
        yield f"data.root=s3://{bucket}/photos (now {config.data.root}): {sends}"
    weights = config.model.weights
    if Path(weights).suffix and not is_weights_file(weights):
        yield f"model.weights=FILE (now {weights}, which is not there): a name such as imagenet1k_v1, or a file to send"
    if config.search.storage:  # not shown: such a URL has a password in it
        yield "search.storage=null (now a URL): a job keeps its study in its own run directory"


def _that_send_photos(config: Config, place: str) -> Iterator[str]:
    """The commands after which the photos are in S3: those of a set that is not here yet are fetched first."""
    data, root = config.data, Path(config.data.root).expanduser()  # quoted for the shell, which expands no ~ then
    if data.archive and not root.exists():
        size = ["--bytes", str(data.archive_bytes)] if data.archive_bytes else []
        region = ["--region", data.archive_region] if data.archive_region else []
        yield shlex.join(["python", "-m", "graft.data", "fetch", data.archive, str(root), *size, *region])
    yield shlex.join(["python", "-m", "graft.data", "upload", str(root), place])


def require(config: Config) -> None:
    """Refuse a configuration from which no job can be made.

    Raises:
        ConfigError: one message that lists all that is missing.
    """
    if lines := missing(config):
        raise ConfigError(
            "launcher=sagemaker needs:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nlauncher.plan=true needs none of it: it sends nothing and says what would be created and its price"
        )


def tags_of(config: Config) -> tuple[tuple[str, str], ...]:
    """`launcher.tags` with one by which everything of this project is found.

    Raises:
        ConfigError: one of them is not KEY=VALUE, or its key is given twice or is not free.
    """
    found = [OURS]
    for text in config.launcher.tags:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ConfigError(f"launcher.tags=[{text}]: accepted is KEY=VALUE each")
        # IAM, whose role has them too, does not tell keys apart by case.
        if key.casefold() in _RESERVED or key.casefold().startswith("aws:"):
            raise ConfigError(
                f"launcher.tags=[{text}]: {key} is not free; accepted is any key but {', '.join(_RESERVED)}, which "
                "graft sets, and aws:..., which AWS keeps"
            )
        if key.casefold() in (other.casefold() for other, _ in found):
            raise ConfigError(f"launcher.tags=[{text}]: {key} is given more than once; accepted is each key once")
        found.append((key, value))
    return tuple(found)


def account_of(config: Config, image: str) -> Account:
    """The account of a configuration that lacks nothing.

    Raises:
        ConfigError: something is missing or is no tag.
    """
    c, region = config.launcher, found_region(config)
    if not (c.role and c.bucket and region):
        raise ConfigError(
            f"launcher.role={c.role}, launcher.region={region}, launcher.bucket={c.bucket}: all are needed"
        )
    return Account(c.role, region, c.bucket, c.prefix.strip("/"), image, tags_of(config))


def is_weights_file(weights: str) -> bool:
    """Whether `model.weights` is a file, here or in S3, that has to travel with the job."""
    return weights.startswith("s3://") or Path(weights).expanduser().is_file()
