"""Photos in the page: small squares as data URIs, read from where the run read them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from graft.data.stores import open_store
from graft.errors import ConfigError, DataError
from graft.images import render
from graft.inputs import InputSpec
from graft.storage import is_remote
from graft.stores import Store

SIDE = 132  # pixels of a thumbnail
QUALITY = 72  # of WebP: about 4 kB each
BUDGET = 800_000  # bytes of all photos of a page, which shall stay below 3 MB: its sections rarely show 500 kB


class Thumbnails:
    """Makes thumbnails of the photos of a run.

    Attributes:
        missing: photos that were wanted and could not be read.
        left_out: photos beyond the page's budget.

    Args:
        root: the run's data.root; None where it is not known.
        fit: how a photo becomes a square: crop or squash.
        cache: where copies of photos in S3 lie.
        max_bytes: their size limit.
    """

    def __init__(self, root: str | None, fit: str, cache: Path, max_bytes: float) -> None:
        self.missing: list[str] = []
        self.left_out = 0
        self._spec = InputSpec(SIDE, SIDE, fit)
        self._room = BUDGET
        self._made: dict[str, str | None] = {}
        self._tags: dict[str, dict[str, bytes]] = {}
        try:
            self._store = open_store(root, "data.root", cache=cache, max_bytes=max_bytes) if root else None
        except ConfigError:
            self._store = None
        self._prefix = f"{self._store.location}/" if self._store else ""

    def take(self, paths: Iterable[str]) -> dict[str, str]:
        """Path -> data URI, for the photos that can be had."""
        return {path: uri for path in paths if (uri := self.one(path))}

    def named(self, names: Iterable[str]) -> dict[str, str]:
        """SPLIT/CLASS/FILE, as the data checks name photos, -> data URI, for those that can be had."""
        found = {}
        for name in names:
            # the split valid may lie in a folder val/
            places = [name, f"val/{name.removeprefix('valid/')}"] if name.startswith("valid/") else [name]
            uris = (self.one(f"{self._prefix}{place}") for place in places)
            if uri := next(filter(None, uris), None):
                found[name] = uri
        return found

    def one(self, path: str) -> str | None:
        """The data URI of a photo, or None."""
        if path not in self._made:
            self._made[path] = self._make(path)
        return self._made[path]

    def _make(self, path: str) -> str | None:
        data = self._read(path)
        if data is None:
            self.missing.append(path)
            return None
        uri = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
        if len(uri) > self._room:
            self.left_out += 1
            return None
        self._room -= len(uri)
        return uri

    def _read(self, path: str) -> bytes | None:
        if self._store is None or not path.startswith(self._prefix):
            return None
        try:
            name = path.removeprefix(self._prefix)
            tag = self._tag(self._store, name) if is_remote(self._store.location) else b""
            pixels = render(self._store.read(name, tag), self._spec).pixels
        except DataError:
            return None
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "WEBP", quality=QUALITY)
        return buffer.getvalue()

    def _tag(self, store: Store, name: str) -> bytes:
        """The version of an object, by a listing of its folder: the copy that a run kept of it is then taken."""
        folder, _, file = name.rpartition("/")
        if folder not in self._tags:
            listing = store.list(folder)
            self._tags[folder] = dict(zip(listing.names, listing.tags.tolist(), strict=True))
        return self._tags[folder].get(file, b"")


def thumbnails_of(config: dict[str, Any]) -> Thumbnails:
    """For the photos of a run, by its configuration (nested, from config.yaml)."""
    data, model, features = (config.get(section) or {} for section in ("data", "model", "features"))
    cache = Path(features.get("cache_dir") or "cache").expanduser() / "objects"
    return Thumbnails(data.get("root"), model.get("fit") or "crop", cache, (data.get("cache_gb") or 0) * 1e9)
