"""Sending a job: everything is checked first, then the source goes up, then the job is created."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from graft.command import Spread
from graft.config import Config, DataKind
from graft.errors import CloudError, ConfigError, DataError, RunError
from graft.launcher.account import Account, account_of, found_region, is_weights_file
from graft.launcher.calls import Pause, client, code_of, explained, is_passing
from graft.launcher.ending import stays
from graft.launcher.images import find_image
from graft.launcher.job import Entry
from graft.launcher.packing import channels_of, make_job, weights_md5, weights_uri
from graft.launcher.plan import Plan, search_minutes
from graft.launcher.presence import was_created
from graft.launcher.requests import (
    Request,
    checkpoints_uri,
    source_uri,
    training_job_request,
)
from graft.launcher.source import pack_source
from graft.launcher.stopping import heed_stop
from graft.launcher.ticket import Ticket, void, write_ticket
from graft.launcher.tuning import tuning_job_request
from graft.launcher.validation import check_request
from graft.s3 import S3Store
from graft.terminal import say


@dataclass(frozen=True)
class Submission:
    """What is to be sent.

    Attributes:
        config: of the run or the search.
        entry: which of the two.
        overrides: what the command line said.
        plan: what it takes.
        spreads: of a tuning job: key -> its values; empty: a training job.
    """

    config: Config
    entry: Entry
    overrides: tuple[str, ...]
    plan: Plan
    spreads: Mapping[str, Spread]


def submit(
    submission: Submission, run_dir: Path, earlier: Ticket | None = None, *, pause: Pause = time.sleep
) -> Ticket:
    """Create a job; job.json in `run_dir` knows of it from before it is there.

    Args:
        submission: what is to be sent.
        run_dir: local.
        earlier: a job that ended before its run was finished, and whose checkpoints this one goes on with.
        pause: waits so many seconds.

    Raises:
        ConfigError: the request would be refused.
        CloudError: AWS refused, or cannot be reached.
        RunError: its sweep was stopped meanwhile.
    """
    config = submission.config
    region = found_region(config)
    if region is None:
        raise ConfigError("launcher.region=null: accepted is the name of a region, such as us-east-1")
    account = account_of(config, find_image(config, region))
    name = new_name("tune" if submission.entry is Entry.tune else "train")
    goes_on = earlier is not None and earlier.kind == "training" and not submission.spreads
    checkpoints = earlier.results.rpartition("/")[0] if earlier and goes_on else None
    operation, request = _request(submission, account, name, checkpoints)
    check_request(operation, request)
    check_bucket(account)
    check_photos(config)
    sent = _send_files(submission, account, name)
    ticket = replace(_ticket(submission, account, name, checkpoints), spent_usd=earlier.most_usd if earlier else 0.0)
    write_ticket(run_dir, ticket)
    try:
        heed_stop(run_dir)
    except RunError:
        write_ticket(run_dir, void(ticket))
        raise
    _create(operation, request, ticket, run_dir, sent, pause)
    return write_ticket(run_dir, replace(ticket, state="submitted"))


def new_name(kind: str) -> str:
    """A name of a job that no other has, at most 32 characters: tuning jobs take no more."""
    return f"graft-{kind}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def check_bucket(account: Account) -> None:
    """Refuse a bucket that is not there, or that belongs to another account.

    Raises:
        CloudError: it is so, or AWS cannot be asked.
    """
    with explained("asking whose credentials these are"):
        owner = client("sts", account.region).get_caller_identity()["Account"]
    try:
        with explained(f"launcher.bucket={account.bucket}"):
            client("s3", account.region).head_bucket(Bucket=account.bucket, ExpectedBucketOwner=owner)
    except CloudError as error:
        if code_of(error) in ("403", "404"):
            why = "there is no such bucket" if code_of(error) == "404" else "denied"
            raise CloudError(
                f"launcher.bucket={account.bucket}: {why}; accepted is a bucket of account {owner} "
                f"(`aws s3 mb s3://{account.bucket}` makes one)"
            ) from error
        raise


def check_photos(config: Config) -> None:
    """Refuse a place without photos, which a job would be billed for before it failed.

    Raises:
        CloudError: nothing is there, or it cannot be listed.
    """
    if config.data.kind is not DataKind.folder:
        return
    try:
        splits = S3Store(config.data.root).folders()
    except DataError as error:
        raise CloudError(f"data.root={error}") from error
    if "train" not in splits:
        found = f"it has {', '.join(splits[:5])}" if splits else "nothing is below it"
        raise CloudError(
            f"data.root={config.data.root}: no train/ there, {found}; `python -m graft.data upload` sends a folder"
        )


def _request(submission: Submission, account: Account, name: str, checkpoints: str | None) -> tuple[str, Request]:
    config, plan = submission.config, submission.plan
    channels = channels_of(config, account)
    if submission.spreads:
        return "CreateHyperParameterTuningJob", tuning_job_request(
            config, account, name, channels, plan.limits, submission.spreads, plan.jobs
        )
    return "CreateTrainingJob", training_job_request(config, account, name, channels, plan.limits, checkpoints)


def _send_files(submission: Submission, account: Account, name: str) -> list[str]:
    """Send what the job reads beside its photos; returns where it lies.

    Raises:
        CloudError: S3 does not take it.
    """
    sent = []
    try:
        sent.append(_send_source(submission, account, name))
        sent += _send_weights(submission.config, account)
    except DataError as error:
        raise CloudError(f"sending the files of {name}: {error}; no job was created{stays(sent)}") from error
    return sent


def _send_source(submission: Submission, account: Account, name: str) -> str:
    config, entry, trial = submission.config, submission.entry, bool(submission.spreads)
    minutes = search_minutes(submission.plan, config) if entry is Entry.tune and not trial else None
    job = make_job(config, entry, submission.overrides, trial=trial, max_minutes=minutes)
    place = source_uri(account, name)
    put(place, pack_source(job))
    return place


def _send_weights(config: Config, account: Account) -> Iterator[str]:
    """Send a local file of weights where S3 does not have it; gives its place, where there is such a file."""
    if is_weights_file(config.model.weights) and not config.model.weights.startswith("s3://"):
        path, uri = Path(config.model.weights).expanduser(), weights_uri(config, account)
        folder, _, file = uri.rpartition("/")
        if file not in S3Store(folder).present().names:
            say(f"sending {path} to {uri}")
            S3Store(folder).put(file, path, weights_md5(path))
        yield uri


def put(uri: str, content: bytes) -> None:
    """Write an object at s3://BUCKET/KEY.

    Raises:
        DataError: it cannot be written.
    """
    folder, _, name = uri.rpartition("/")
    S3Store(folder).put(name, content, hashlib.md5(content, usedforsecurity=False).hexdigest())


def _ticket(submission: Submission, account: Account, name: str, checkpoints: str | None) -> Ticket:
    plan = submission.plan
    is_tuning = bool(submission.spreads)
    results = account.uri("jobs") if is_tuning else f"{checkpoints or checkpoints_uri(account, name)}/run"
    return Ticket(
        name=name,
        kind="tuning" if is_tuning else "training",
        entry=submission.entry.name,
        region=account.region,
        uri=account.uri("jobs", name),
        results=results,
        instance_type=plan.instance_type,
        instances=plan.instances,
        usd_per_hour=plan.usd_per_hour,
        planned_minutes=(plan.minutes.low, plan.minutes.high),
        planned_usd=(plan.usd.low, plan.usd.high) if plan.usd else None,
        limit_usd=plan.most_usd,
        followed=submission.config.launcher.wait,
    )


def _create(operation: str, request: Request, ticket: Ticket, run_dir: Path, sent: Sequence[str], pause: Pause) -> None:
    """Create the job. Where the answer got lost, SageMaker is asked whether it is there: it would be billed."""
    service = client("sagemaker", ticket.region)
    create = service.create_hyper_parameter_tuning_job if ticket.kind == "tuning" else service.create_training_job
    try:
        with explained(f"creating {ticket.name}"):
            create(**request)
    except CloudError as error:
        lost = is_passing(error) or code_of(error) == "ResourceInUse"  # the name is ours: a retry met its own job
        if not lost:
            write_ticket(run_dir, void(ticket))
            raise CloudError(f"{error}; no job was created{stays(sent)}") from error
        if not was_created(ticket, error, pause):
            write_ticket(run_dir, void(ticket))
            raise CloudError(f"{error}; no job was created{stays(sent)}") from error
