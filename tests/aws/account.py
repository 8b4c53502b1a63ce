"""The account that everything belongs to, and its buckets and roles as a job uses them."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from tests.aws.rejections import invalid

ACCOUNT = "123456789012"  # moto's own
REGION = "us-east-1"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": REGION}

TRANSFERS = 8
LARGEST_KEPT = 1_000_000
_known: dict[tuple[str, str, str], bytes] = {}
_known_lock = threading.Lock()
_making = threading.Lock()


def arn(kind: str, name: str) -> str:
    """Of something of SageMaker's."""
    return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind}/{name}"


def client(service: str, url: str) -> Any:
    """A boto3 client of the local AWS, whatever the environment says."""
    with _making:  # boto3's default session makes one at a time
        return _client(service, url)


@cache
def _client(service: str, url: str) -> Any:
    """Made once: that takes 30 ms."""
    import boto3

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": REGION}
    return boto3.client(service, endpoint_url=url, **keys)


def check_role(url: str, role: str) -> None:
    """Refuse a role that is not there."""
    iam = client("iam", url)
    try:
        iam.get_role(RoleName=role.rpartition("/")[2])
    except iam.exceptions.NoSuchEntityException as error:
        raise invalid(
            f"Could not assume role {role}. Please ensure that the role exists and allows principal "
            "'sagemaker.amazonaws.com' to assume the role."
        ) from error


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of s3://BUCKET/KEY."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def list_objects(url: str, uri: str) -> Mapping[str, str]:
    """Key -> ETag of all objects below a prefix; empty where there is no such bucket."""
    s3 = client("s3", url)
    bucket, prefix = split_uri(uri)
    try:
        pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix))
    except s3.exceptions.NoSuchBucket:
        return {}
    return {entry["Key"]: entry["ETag"] for page in pages for entry in page.get("Contents", [])}


def download(url: str, uri: str, folder: Path) -> int:
    """Copy all objects below a prefix into a folder; how many there were."""
    bucket, prefix = split_uri(uri)
    base = prefix if prefix.endswith("/") or not prefix else f"{prefix}/"
    found = {key: tag for key, tag in list_objects(url, uri).items() if not key.endswith("/")}
    with ThreadPoolExecutor(TRANSFERS) as pool:
        # A prefix that is an object's whole key gives that one file, as in SageMaker.
        names = [key.removeprefix(base) if key.startswith(base) else key.rpartition("/")[2] for key in found]
        places = [folder / name for name in names]
        list(pool.map(partial(_fetch, client("s3", url), bucket), found.items(), places))
    return len(found)


def _fetch(s3: Any, bucket: str, entry: tuple[str, str], path: Path) -> None:
    """An object as a file, from those fetched before where it is among them: every job reads the same photos."""
    key, tag = entry
    path.parent.mkdir(parents=True, exist_ok=True)
    with _known_lock:
        known = _known.get((bucket, key, tag))
    if known is None:
        known = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        if len(known) < LARGEST_KEPT:
            with _known_lock:
                _known[bucket, key, tag] = known
    path.write_bytes(known)


def upload(url: str, path: Path, uri: str) -> None:
    """Copy a file to an address in S3."""
    bucket, key = split_uri(uri)
    client("s3", url).upload_file(str(path), bucket, key)


@dataclass
class Kept:
    """A folder whose files are kept in S3 while they change.

    Attributes:
        url: of the local AWS.
        folder: here.
        uri: there.
    """

    url: str
    folder: Path
    uri: str
    _seen: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def restore(self) -> None:
        """Bring back what an earlier machine left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        download(self.url, self.uri, self.folder)

    def send(self) -> None:
        """Send what is new or has changed; what is deleted here stays there."""
        for path in sorted(self.folder.rglob("*")):
            try:
                status = path.stat()
                known = (status.st_mtime_ns, status.st_size)
                if not path.is_file() or self._seen.get(path) == known:
                    continue
                upload(self.url, path, f"{self.uri.rstrip('/')}/{path.relative_to(self.folder).as_posix()}")
            except FileNotFoundError:  # a temporary file, renamed since
                continue
            self._seen[path] = known


@dataclass
class LogStream:
    """A stream of the logs service; lines are kept until `flush`."""

    url: str
    group: str
    name: str
    _lines: deque[tuple[int, str]] = field(default_factory=deque)  # written by one thread, sent by another

    def write(self, line: str) -> None:
        """Add a line, at the time of now."""
        self._lines.append((round(time.time() * 1000), line))

    def flush(self) -> None:
        """Send what was added."""
        events = []
        while self._lines:
            at, line = self._lines.popleft()
            events.append({"timestamp": at, "message": line or " "})
        if not events:
            return
        logs = client("logs", self.url)
        for create, names in (
            (logs.create_log_group, {"logGroupName": self.group}),
            (logs.create_log_stream, {"logGroupName": self.group, "logStreamName": self.name}),
        ):
            try:
                create(**names)
            except logs.exceptions.ResourceAlreadyExistsException:
                continue
        for first in range(0, len(events), 1000):
            logs.put_log_events(
                logGroupName=self.group, logStreamName=self.name, logEvents=events[first : first + 1000]
            )


def environment(url: str) -> dict[str, str]:
    """What a process of the account has: its keys, and as little as possible of this machine."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "SYSTEMROOT") if name in os.environ}
    aws = {"AWS_ENDPOINT_URL": url, "AWS_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true"}
    return {**kept, **KEYS, **aws, "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_CONFIG_FILE": "/dev/null"}
