"""Pages of lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def paged(key: str, entries: list[dict[str, Any]], request: Mapping[str, Any]) -> dict[str, Any]:
    """A page of a list: `MaxResults` (100 by default) from `NextToken` on."""
    first = int(request.get("NextToken", 0))
    last = first + int(request.get("MaxResults", 100))
    more = {"NextToken": str(last)} if last < len(entries) else {}
    return {key: entries[first:last], **more}
