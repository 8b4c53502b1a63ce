"""Which version of an object is meant: its ETag and size, packed into the tag of a listing."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass

from graft.stores import TAG_BYTES

_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Version:
    """One version of an object. `etag` is without quotes; `size` in bytes."""

    etag: str
    size: int

    @property
    def md5(self) -> str | None:
        """What the ETag says is the MD5 of the content, hex; None where it says no such thing.

        The ETag of an object encrypted with SSE-KMS or SSE-C looks like an MD5 and is none.
        """
        return self.etag if _MD5.fullmatch(self.etag) else None

    def tag(self, where: str) -> bytes:
        """The version as at most 56 bytes of ASCII, `ETAG|SIZE` with the size in hex; empty where none can be made.

        An MD5 says the same of an object wherever it lies. Any other ETag is unique only among the versions of one
        object, so five characters made of `where`, its full address, are added.
        """
        text = f"{self.etag}|{self.size:x}"
        if self.md5 is None:
            digest = hashlib.blake2b(where.encode(errors="surrogateescape"), digest_size=6).digest()
            text += f"|{base64.urlsafe_b64encode(digest)[:5].decode()}"
        # A weak ETag (W/"...") cannot be asked for.
        usable = text.isascii() and len(text) <= TAG_BYTES and text.count("|") <= 2 and not text.startswith("W/")
        return text.encode() if usable and self.etag else b""


def read_tag(tag: bytes) -> Version | None:
    """The version that a tag stands for; None for the empty one."""
    if not tag:
        return None
    etag, size, *_ = bytes(tag).decode().split("|")
    return Version(etag, int(size, 16))
