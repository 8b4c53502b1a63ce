"""What an s3:// location says: a bucket and what is below it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from graft.errors import DataError


@dataclass(frozen=True)
class Place:
    """A bucket and a prefix: "", or folders that each end in a slash."""

    bucket: str
    prefix: str

    def url(self, name: str = "") -> str:
        """As a person would type it."""
        return f"s3://{self.bucket}/{self.prefix}{name}".rstrip("/")


def parse_place(location: str) -> Place:
    """The place that s3://BUCKET or s3://BUCKET/PREFIX names.

    Raises:
        DataError: it is no such location.
    """
    match = re.fullmatch(r"s3://([A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9])(/.*)?", location, re.DOTALL)
    if match is None:
        raise DataError(f"{location} is no place in S3; accepted is s3://BUCKET or s3://BUCKET/PREFIX")
    prefix = (match[2] or "").strip("/")
    return Place(match[1], f"{prefix}/" if prefix else "")
