"""What a request asks about: media types, JSON and limits; its bytes to the pixels that the model was trained on.

Nothing of a request is trusted: its type is looked at for JSON or not, an image is recognised by its
first bytes, and every size is checked before the memory for it is spent. docs/serving.md, "Inputs",
lists what each input is answered with; a test posts every line of it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.images import ImageError, PixelError, Pixels, open_header, render
from graft.inputs import InputSpec
from serve.refusals import Refusal

FORMATS = ("JPEG", "PNG", "WEBP")
IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream", "application/x-image")
JSON_TYPE = "application/json"

ACCEPTED_TYPES = f"Content-Type may be {', '.join(IMAGE_TYPES)} or {JSON_TYPE}"
ACCEPTED_IMAGES = f"an image may be a {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
ACCEPTED_JSON = 'JSON may be {"image": BASE64}, {"url": "https://..."}, or a list of those'
URL_IS_OFF = "send the photo itself, or start the server with serve.allow_url=true"

# What every scan of a JPEG begins with; coded pixels never hold these two bytes. A scan may have a few bytes, and costs
# a walk through all pixels; encoders write about ten.
_SCAN = b"\xff\xda"

# Values for each photo that a list may have: far more than an entry's one, far less than what fills the memory.
VALUES = 100

Fetch = Callable[[str], bytes]


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    `body`: bytes of a body, and of a photo behind an address; SageMaker's own limit is 6,291,456.
    `pixels`: width x height of a photo as stored, before it is decoded (three bytes each).
    `frames`: of an animation, of which the first is looked at. `scans`: of a JPEG. `photos`: in one request.
    """

    body: int = 6_291_456
    pixels: int = 50_000_000
    frames: int = 200
    scans: int = 50
    photos: int = 32


class Photos(list[bytes]):
    """The encoded photos of a request, in its order; `listed` where it was a list, and so its answer is one."""

    def __init__(self, photos: Iterable[bytes], *, listed: bool = False) -> None:
        super().__init__(photos)
        self.listed = listed


@dataclass(frozen=True)
class Entries:
    """What a request asks about, in its order; at least one.

    `entries`: encoded photos, and addresses of photos (text). `listed`: whether it was a list.
    """

    entries: tuple[bytes | str, ...]
    listed: bool

    @property
    def to_fetch(self) -> bool:
        """Whether there is an address among them."""
        return any(isinstance(entry, str) for entry in self.entries)

    def photos(self, fetch: Fetch | None = None) -> Photos:
        """The photos, those behind addresses fetched. Raises what `fetch` raises: Refusal."""
        if fetch is None:
            return Photos([entry for entry in self.entries if isinstance(entry, bytes)], listed=self.listed)
        return Photos((fetch(entry) if isinstance(entry, str) else entry for entry in self.entries), listed=self.listed)


def read_entries(body: bytes, content_type: str | None, limits: Limits, *, addresses: bool = False) -> Entries:
    """What a request asks about.

    Case and parameters of `content_type` do not matter, and without one the body is taken for an image.
    Raises Refusal: 415 for another type, 413 for too much, 400 for what cannot be read, 403 for an address
    where `addresses` are off.
    """
    check_size(len(body), limits)
    media_type = (content_type or IMAGE_TYPES[3]).partition(";")[0].strip().lower()
    if media_type != JSON_TYPE and media_type not in IMAGE_TYPES:
        raise Refusal(415, f"Content-Type {media_type[:100]!r} is not read", ACCEPTED_TYPES)
    if not body:
        raise Refusal(400, "the body is empty", f"{ACCEPTED_IMAGES}; {ACCEPTED_JSON}")
    if media_type != JSON_TYPE:
        return Entries((body,), listed=False)
    document = _parse(body, limits)
    entries = tuple(_entry(entry, where, addresses) for where, entry in _entries(document, limits))
    return Entries(entries, listed=isinstance(document, list))


def read_file(path: Path) -> bytes:
    """The bytes of a photo on disk. Raises Refusal where it cannot be opened."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refusal(400, f"the file cannot be opened: {error.strerror}", "a photo that this user may read") from error


def check_size(size: int, limits: Limits) -> None:
    """Refuse a body of more bytes than accepted, by its announced length or by what came so far."""
    if size > limits.body:
        raise Refusal(413, f"the body has {size} bytes or more", f"a body may have {limits.body} bytes")


def decode(data: bytes, spec: InputSpec, limits: Limits) -> Pixels:
    """The photo as the model expects it: uint8 [S, S, 3], RGB, upright.

    Raises Refusal: 400 for another format, damage or a missing end, 413 for too many pixels, frames or scans.
    """
    try:
        header = open_header(data, FORMATS)
        width, height = header.size
        if width * height > limits.pixels:
            problem = f"the photo has {width} x {height} = {width * height} pixels"
            raise Refusal(413, problem, f"a photo may have {limits.pixels} pixels")
        frames = getattr(header, "n_frames", 1)
        if frames > limits.frames:
            raise Refusal(413, f"the photo has {frames} frames", f"a photo may have {limits.frames} frames")
        scans = data.count(_SCAN) if header.format in ("JPEG", "MPO") else 0
        if scans > limits.scans:
            raise Refusal(413, f"the photo has {scans} scans", f"a photo may have {limits.scans} scans")
        rendered = render(data, spec)
    except PixelError as error:
        raise Refusal(413, f"the photo has {error}", f"a photo may have {limits.pixels} pixels") from error
    except ImageError as error:
        raise Refusal(400, f"the photo cannot be read: {error}", ACCEPTED_IMAGES) from error
    if rendered.truncated:
        raise Refusal(400, f"the photo ends early, after {len(data)} bytes", "a photo must be complete")
    return rendered.pixels


def _parse(body: bytes, limits: Limits) -> Any:
    # Counted before they are parsed: 6 MB of "{}," would become 150 MB. Base64 has none of these three bytes.
    values, accepted = sum(map(body.count, (b"{", b"[", b","))), VALUES * limits.photos
    if values > accepted:
        raise Refusal(400, f"the JSON has {values} values or more", f"JSON may have {accepted} values; {ACCEPTED_JSON}")
    try:
        return json.loads(body)
    except RecursionError as error:
        raise Refusal(400, "the JSON is nested too deeply", ACCEPTED_JSON) from error
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {str(error)[:200]}", ACCEPTED_JSON) from error


def _entries(document: Any, limits: Limits) -> list[tuple[str, Any]]:
    """The entries of a document, each with the words that say where it stands."""
    if not isinstance(document, list):
        return [("the JSON", document)]
    if not document:
        raise Refusal(400, "the list is empty", ACCEPTED_JSON)
    if len(document) > limits.photos:
        raise Refusal(400, f"the list has {len(document)} entries", f"a list may have {limits.photos} entries")
    return [(f"entry {index} of the list", entry) for index, entry in enumerate(document)]


def _entry(entry: Any, where: str, addresses: bool) -> bytes | str:
    if not isinstance(entry, dict):
        raise Refusal(400, f"{where} is a {_kind(entry)}", ACCEPTED_JSON)
    keys = sorted(entry)
    if keys not in (["image"], ["url"]):
        problem = f"{where} has the keys {', '.join(keys)[:100]}" if keys else f"{where} has no keys"
        raise Refusal(400, problem, ACCEPTED_JSON)
    (value,) = entry.values()
    if not isinstance(value, str) or not value:
        found = "empty" if value == "" else f"a {_kind(value)}"
        raise Refusal(400, f"{keys[0]!r} in {where} is {found}", ACCEPTED_JSON)
    if keys == ["image"]:
        return _decode_base64(value, where)
    if not addresses:
        raise Refusal(403, f"'url' in {where}: addresses are not fetched here", URL_IS_OFF)
    return value


def _decode_base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"'image' in {where} is not base64: {error}", ACCEPTED_JSON) from error


def _kind(value: Any) -> str:
    """A JSON value's kind in JSON's own words."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
