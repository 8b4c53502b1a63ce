"""serve/reading.py: what is read, and the status and words for what is not."""

from __future__ import annotations

import base64
import io
import json
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graft.images import render
from graft.inputs import InputSpec
from serve.reading import URL_IS_OFF, Limits, decode, read_entries
from serve.refusals import Refusal

SPEC = InputSpec(image_size=32, resize=36)
LIMITS = Limits()


def photo(form: str = "JPEG", size: tuple[int, int] = (60, 40), **options: Any) -> bytes:
    """A small encoded photo with some structure."""
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, form, **options)
    return buffer.getvalue()


def refusal(body: bytes, content_type: str | None, limits: Limits = LIMITS) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_entries(body, content_type, limits)
    return caught.value


@pytest.mark.parametrize(
    "content_type",
    [
        "image/jpeg",
        "IMAGE/JPEG; name=akita.jpg",
        " image/png ;q=1",
        "application/x-image",
        "Application/OCTET-stream",
        None,
    ],
)
def test_case_and_parameters_of_the_type_do_not_matter(content_type: str | None) -> None:
    assert read_entries(b"bytes", content_type, LIMITS).photos() == [b"bytes"]


def test_json_gives_images_and_addresses_in_order() -> None:
    document = [{"image": base64.b64encode(b"one").decode()}, {"url": "https://host/two"}]
    body = json.dumps(document).encode()
    entries = read_entries(body, "application/json; charset=utf-8", LIMITS, addresses=True)
    assert entries.to_fetch
    assert entries.photos(str.encode) == [b"one", b"https://host/two"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-be"])
def test_a_list_of_one_is_a_list_in_every_encoding_of_json(encoding: str) -> None:
    entry = json.dumps({"image": base64.b64encode(b"one").decode()})
    for text, listed in ((f" [{entry}]", True), (entry, False)):
        photos = read_entries(text.encode(encoding), "application/json", LIMITS).photos()
        assert (photos, photos.listed) == ([b"one"], listed)
    assert not read_entries(b"[", "image/jpeg", LIMITS).listed


def test_a_refused_type_names_what_is_accepted() -> None:
    answer = refusal(b"photo=1", "application/x-www-form-urlencoded")
    assert json.loads(answer.body()) == {
        "error": {
            "status": 415,
            "problem": "Content-Type 'application/x-www-form-urlencoded' is not read",
            "accepted": "Content-Type may be image/jpeg, image/png, image/webp, application/octet-stream, "
            "application/x-image or application/json",
        }
    }


@pytest.mark.parametrize("document", [b"{},", b"[],", b'"",', b"1.5,", b'{"a":1},', b"[["])
def test_json_of_many_values_is_refused_before_they_take_memory(document: bytes) -> None:
    body = b"[" + document * (6_000_000 // len(document)) + b"1]"
    tracemalloc.start()
    with pytest.raises(Refusal, match=r"400: the JSON has \d+ values or more; JSON may have 3200 values; JSON may be"):
        read_entries(body, "application/json", LIMITS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("document", "status", "problem"),
    [
        (b"{", 400, "the body is not JSON: Expecting property name"),
        (b"\xff\xfe\xff", 400, "the body is not JSON"),
        (b"[" * 3000, 400, "the JSON is nested too deeply"),
        (b"[" * 3201, 400, "the JSON has 3201 values or more"),
        (b"[]", 400, "the list is empty"),
        (b"[" + b"1," * 32 + b"1]", 400, "the list has 33 entries"),
        (b"3", 400, "the JSON is a number"),
        (b"[true]", 400, "entry 0 of the list is a boolean"),
        (b"{}", 400, "the JSON has no keys"),
        (b'{"url": "a", "image": "b"}', 400, "the JSON has the keys image, url"),
        (b'{"image": [[]]}', 400, "'image' in the JSON is a list"),
        (b'{"image": ""}', 400, "'image' in the JSON is empty"),
        (b'{"image": "a"}', 400, "'image' in the JSON is not base64"),
        (b'{"image": "\xc3\xa9\xc3\xa9=="}', 400, "'image' in the JSON is not base64"),
        (b'{"url": "https://host/"}', 403, "'url' in the JSON: addresses are not fetched here"),
        (b"", 400, "the body is empty"),
    ],
)
def test_json_that_is_refused(document: bytes, status: int, problem: str) -> None:
    answer = refusal(document, "application/json")
    assert answer.status == status
    assert answer.problem.startswith(problem)


def test_the_refusal_of_an_address_says_how_to_turn_it_on() -> None:
    assert refusal(b'{"url": "https://host/"}', "application/json").accepted == URL_IS_OFF
    assert "serve.allow_url=true" in URL_IS_OFF


def test_a_long_body_is_refused() -> None:
    answer = refusal(b"12345", "image/jpeg", Limits(body=4))
    assert (answer.status, answer.problem, answer.accepted) == (
        413,
        "the body has 5 bytes or more",
        "a body may have 4 bytes",
    )


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_pixels_are_those_of_training(form: str) -> None:
    data = photo(form)
    assert np.array_equal(decode(data, SPEC, LIMITS), render(data, SPEC).pixels)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header announces what its data do not hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "limits", "status", "problem"),
    [
        (photo("GIF"), LIMITS, 400, "the photo cannot be read: "),
        (photo("TIFF"), LIMITS, 400, "the photo cannot be read: "),
        (b"some text", LIMITS, 400, "the photo cannot be read: 9 bytes starting b'some tex'"),
        (bomb(9000, 9000), LIMITS, 413, "the photo has 9000 x 9000 = 81000000 pixels"),
        (bomb(60_000, 60_000), LIMITS, 413, "the photo has too many pixels"),
        (photo(), Limits(pixels=2399), 413, "the photo has 60 x 40 = 2400 pixels"),
        (photo()[:-400], LIMITS, 400, "the photo ends early, after "),
        (photo("PNG")[:-400], LIMITS, 400, "the photo ends early, after "),
    ],
)
def test_images_that_are_refused(data: bytes, limits: Limits, status: int, problem: str) -> None:
    with pytest.raises(Refusal) as caught:
        decode(data, SPEC, limits)
    assert (caught.value.status, caught.value.problem[: len(problem)]) == (status, problem)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame_and_may_not_be_long(form: str) -> None:
    first, second = (Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
    buffer = io.BytesIO()
    first.save(buffer, form, save_all=True, append_images=[second, first])
    assert decode(buffer.getvalue(), SPEC, LIMITS).mean((0, 1)).round().tolist()[0] > 240
    with pytest.raises(Refusal, match="413: the photo has 3 frames; a photo may have 2 frames"):
        decode(buffer.getvalue(), SPEC, Limits(frames=2))
