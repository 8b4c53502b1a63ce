"""What is below a prefix: page by page, and from some thousand objects on several folders at a time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from graft.s3.errors import explained
from graft.s3.place import Place
from graft.s3.versions import Version
from graft.stores import TAG_BYTES, Listing, Tags

# A page has 1,000 keys. After this many, a request for each folder costs less than waiting for one page after another.
_PAGES_IN_A_ROW = 8
_LISTERS = 16

Entries = tuple[list[str], list[Tags]]  # names relative to the prefix, and in portions their tags


def folders_below(client: Any, place: Place) -> list[str]:
    """Names of the folders directly below a prefix, sorted."""
    pages = _pages(client, place.bucket, place.prefix, Delimiter="/")
    found = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", [])]
    return sorted(prefix[len(place.prefix) : -1] for prefix in found)


def entries_below(client: Any, place: Place) -> Listing:
    """All objects below a prefix, however deep, but for the markers of empty folders. No dict per object is kept."""
    names, portions = _entries(client, place)
    tags = np.concatenate([np.empty(0, f"S{TAG_BYTES}"), *portions])
    portions.clear()
    # Keys come in the order of their UTF-8 bytes, which is that of str, but not from directory buckets.
    if any(first > second for first, second in pairwise(names)):
        order = sorted(range(len(names)), key=names.__getitem__)
        names, tags = [names[index] for index in order], tags[order]
    return Listing(tuple(names), tags)


def _entries(client: Any, place: Place) -> Entries:
    found: Entries = ([], [])
    for number, page in enumerate(_pages(client, place.bucket, place.prefix), 1):
        _take(client, place, page.get("Contents", []), found)
        ordered = not place.bucket.endswith("--x-s3")  # directory buckets are not
        if number == _PAGES_IN_A_ROW and page["IsTruncated"] and ordered:
            _take_rest(client, place, page["Contents"][-1]["Key"], found)
            break
    return found


def _take_rest(client: Any, place: Place, last: str, found: Entries) -> None:
    """The entries after the key `last`, several folders at a time."""

    def below(folder: str) -> Entries:
        own: Entries = ([], [])
        start = {"StartAfter": last} if last.startswith(folder) else {}
        for page in _pages(client, place.bucket, folder, **start):
            _take(client, place, page.get("Contents", []), own)
        return own

    folders = []
    for page in _pages(client, place.bucket, place.prefix, Delimiter="/"):
        folders += [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
        _take(client, place, [entry for entry in page.get("Contents", []) if entry["Key"] > last], found)
    waiting = [folder for folder in folders if folder > last or last.startswith(folder)]
    with ThreadPoolExecutor(_LISTERS) as pool:
        for names, portions in pool.map(below, waiting):
            found[0].extend(names)
            found[1].extend(portions)


def _take(client: Any, place: Place, contents: list[dict[str, Any]], found: Entries) -> None:
    entries = [entry for entry in contents if not entry["Key"].endswith("/")]
    base = f"{client.meta.endpoint_url}/{place.bucket}/"
    tags = [Version(entry["ETag"].strip('"'), entry["Size"]).tag(base + entry["Key"]) for entry in entries]
    found[0].extend(entry["Key"][len(place.prefix) :] for entry in entries)
    found[1].append(np.array(tags, f"S{TAG_BYTES}"))


def _pages(client: Any, bucket: str, prefix: str, **more: Any) -> Iterator[dict[str, Any]]:
    with explained(Place(bucket, prefix).url()):
        pages = client.get_paginator("list_objects_v2")
        yield from pages.paginate(Bucket=bucket, Prefix=prefix, **more)
