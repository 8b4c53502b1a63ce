"""From the configuration to what travels: the job that a container reads, and the channels with its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from graft.config import (
    BudgetConfig,
    Config,
    DataKind,
    EvaluateConfig,
    InputMode,
    LauncherConfig,
    SearchBackend,
    flatten,
)
from graft.errors import ConfigError
from graft.launcher.account import Account, is_weights_file
from graft.launcher.job import CACHE_DIR, PHOTOS_CHANNEL, RUN_DIR, TRIAL_RUN_DIR, WEIGHTS_CHANNEL, Entry, Job
from graft.launcher.requests import Channel
from graft.storage import file_md5

_SECRET = "search.storage"  # a URL with a password


def make_job(
    config: Config,
    entry: Entry,
    overrides: tuple[str, ...] = (),
    *,
    trial: bool = False,
    max_minutes: float | None = None,
) -> Job:
    """What the container runs: this configuration, with its own launcher and its own places.

    Who runs it and for how much is left out: a run goes on only with the configuration that it began with, and a
    larger budget is how one that was ended by its budget goes on. So is the password in search.storage.

    Args:
        config: of the run or the search.
        entry: which of the two.
        overrides: what the command line said, for the record.
        trial: it is one of a tuning job's: a training, which must not choose on test.
        max_minutes: of a search, so that it ends before its job is ended; None: the configuration's.
    """
    minutes = max_minutes or config.search.max_minutes
    local = replace(
        config,
        launcher=LauncherConfig(),
        budget=BudgetConfig(),
        search=replace(config.search, backend=SearchBackend.one_job, storage=None, max_minutes=minutes),
        run_dir=str(TRIAL_RUN_DIR if trial else RUN_DIR),
        features=replace(config.features, cache_dir=str(CACHE_DIR)),
        evaluate=EvaluateConfig(test=False) if trial else config.evaluate,
    )
    channels = {}
    if config.data.kind is DataKind.folder:
        channels["data.root"] = PHOTOS_CHANNEL
    if is_weights_file(config.model.weights):
        channels["model.weights"] = f"{WEIGHTS_CHANNEL}/{Path(config.model.weights).name}"
    told = tuple(text for text in overrides if text.lstrip("+").partition("=")[0] != _SECRET)
    return Job(Entry.train if trial else entry, flatten(local), channels, told)


def channels_of(config: Config, account: Account) -> list[Channel]:
    """The places in S3 that the job finds as folders; a local file of weights is expected at `weights_uri`.

    Raises:
        ConfigError: the file of weights cannot be read.
    """
    channels = []
    if config.data.kind is DataKind.folder:
        # With the slash: S3Prefix takes every key that begins so, photos-old/ too.
        channels.append(Channel(PHOTOS_CHANNEL, config.data.root.rstrip("/") + "/", config.launcher.input_mode))
    if is_weights_file(config.model.weights):
        channels.append(Channel(WEIGHTS_CHANNEL, weights_uri(config, account), InputMode.File))
    return channels


def weights_uri(config: Config, account: Account) -> str:
    """Where a file of weights lies in S3: named by its content, so that it is sent once."""
    weights = config.model.weights
    if weights.startswith("s3://"):
        return weights
    return account.uri("weights", weights_md5(Path(weights).expanduser()), Path(weights).name)


def weights_md5(weights: Path) -> str:
    """MD5 of `model.weights`, hex.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return file_md5(weights)
    except OSError as error:
        raise ConfigError(f"model.weights={weights} cannot be read ({error.strerror})") from error
