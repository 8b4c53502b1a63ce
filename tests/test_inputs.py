"""Every line of docs/serving.md, "Inputs", posted to the server, each followed by a plain photo."""

from __future__ import annotations

import base64
import io
import json
import random
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving import Running, photo, running

PAGE = Path(__file__).resolve().parents[1] / "docs" / "serving.md"
ANY, JSON_TYPE = "application/octet-stream", "application/json"
Input = tuple[str, bytes]  # Content-Type and body


def picture(mode: str, form: str, **options: Any) -> bytes:
    """A red picture (as far as the mode can say so), encoded."""
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), "red").convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def wide() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 60), 40_000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def animation(form: str, frames: int) -> bytes:
    buffer = io.BytesIO()
    first, *others = (Image.new("RGB", (40, 40), (255, 40 * index, 0)) for index in range(frames))
    first.save(buffer, form, save_all=True, append_images=others)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture("RGB", "JPEG", exif=exif)


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again: a few bytes, and a walk through all pixels for each."""
    begin = b"\xff\xda"
    head, *parts = picture("RGB", "JPEG", progressive=True).removesuffix(b"\xff\xd9").split(begin)
    return begin.join([head, *parts, *parts[-1:] * (count - len(parts))]) + b"\xff\xd9"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG of any announced size around any pixel data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def noise(form: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def tenths(form: str) -> dict[str, Input]:
    data = noise(form)
    return {f"{form} cut at {tenth}0 %": (ANY, data[: len(data) * tenth // 10]) for tenth in range(1, 10)}


def image_json(data: bytes) -> str:
    return json.dumps({"image": base64.b64encode(data).decode()})


RED = photo("red")
INPUTS: dict[str, Input] = {
    "JPEG": ("image/jpeg", RED),
    "PNG": ("image/png", photo("red", "PNG")),
    "WEBP": ("image/webp", photo("red", "WEBP")),
    "sniffed": (ANY, RED),
    "application/x-image": ("application/x-image", RED),
    "type with a parameter": ("image/jpeg; charset=binary", RED),
    "type in upper case": ("IMAGE/JPEG", RED),
    "PNG sent as image/jpeg": ("image/jpeg", photo("red", "PNG")),
    "JSON with an image": (JSON_TYPE, image_json(RED).encode()),
    "JSON with a charset": (JSON_TYPE + "; charset=utf-8", image_json(RED).encode()),
    "JSON in UTF-16": (JSON_TYPE, image_json(RED).encode("utf-16")),
    "JSON list of one": (JSON_TYPE, f"[{image_json(RED)}]".encode()),
    "JSON list of four": (JSON_TYPE, f"[{','.join([image_json(RED)] * 4)}]".encode()),
    "greyscale JPEG": (ANY, picture("L", "JPEG")),
    "CMYK JPEG": (ANY, picture("CMYK", "JPEG")),
    "progressive JPEG": (ANY, picture("RGB", "JPEG", progressive=True)),
    "RGBA PNG": (ANY, picture("RGBA", "PNG")),
    "palette PNG": (ANY, picture("P", "PNG")),
    "palette PNG with transparency": (ANY, picture("P", "PNG", transparency=0)),
    "black and white PNG": (ANY, picture("1", "PNG")),
    "grey PNG with alpha": (ANY, picture("LA", "PNG")),
    "16-bit PNG": (ANY, wide()),
    "RGBA WEBP": (ANY, picture("RGBA", "WEBP")),
    "lossless WEBP": (ANY, picture("RGB", "WEBP", lossless=True)),
    "one pixel": (ANY, photo("red", "PNG", (1, 1))),
    "one pixel high": (ANY, photo("red", "PNG", (1000, 1))),
    "animated PNG of 3 frames": (ANY, animation("PNG", 3)),
    "animated WEBP of 3 frames": (ANY, animation("WEBP", 3)),
    "JPEG with bytes after its end": (ANY, RED + b"more"),
    **{f"orientation {value}": (ANY, turned(value)) for value in range(10)},
    "animated PNG of 4 frames": (ANY, animation("PNG", 4)),
    "animated WEBP of 4 frames": (ANY, animation("WEBP", 4)),
    "JPEG of 51 scans": (ANY, scans(51)),
    "PNG of 1001 x 1000": (ANY, photo("red", "PNG", (1001, 1000))),
    "PNG that announces 12000 x 12000": (ANY, png(12_000, 12_000, b"\0" * 100)),
    "PNG that announces 65000 x 65000": (ANY, png(65_000, 65_000, b"\0" * 100)),
    "body above the limit": (ANY, bytes(100_001)),
    "JSON list of five": (JSON_TYPE, f"[{','.join(['{}'] * 5)}]".encode()),
    "PNG with data for less than it announces": (ANY, png(100, 100, b"\0" * 100)),
    "PNG of no pixels": (ANY, png(0, 0, b"")),
    "PNG with a wrong checksum": (ANY, photo("red", "PNG")[:20] + b"\xff" + photo("red", "PNG")[21:]),
    "GIF": (ANY, picture("P", "GIF")),
    "animated GIF": ("image/jpeg", animation("GIF", 3)),
    "BMP": (ANY, picture("RGB", "BMP")),
    "TIFF": (ANY, picture("RGB", "TIFF")),
    "SVG": (ANY, b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "text": ("image/jpeg", b"not a photo"),
    "NumPy file": (ANY, b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}"),
    "pickle": (ANY, b"\x80\x04\x95\x01\x00\x00\x00\x00\x00\x00\x00N."),
    "zeros": (ANY, bytes(1000)),
    "JPEG header alone": (ANY, b"\xff\xd8\xff\xe0"),
    "empty body": (ANY, b""),
    "empty JSON": (JSON_TYPE, b""),
    "JSON that is broken": (JSON_TYPE, b'{"image": '),
    "JSON nested 50000 deep": (JSON_TYPE, b"[" * 50_000),
    "JSON list of 30000": (JSON_TYPE, b"[" + b",".join([b"{}"] * 30_000) + b"]"),
    "JSON nested 20 deep": (JSON_TYPE, b"[" * 20 + b"]" * 20),
    "JSON number of 5000 digits": (JSON_TYPE, b"9" * 5000),
    "JSON text": (JSON_TYPE, b'"photo"'),
    "JSON null": (JSON_TYPE, b"null"),
    "JSON empty list": (JSON_TYPE, b"[]"),
    "JSON empty object": (JSON_TYPE, b"{}"),
    "JSON with another key": (JSON_TYPE, b'{"photo": "x"}'),
    "JSON with image and url": (JSON_TYPE, b'{"image": "x", "url": "y"}'),
    "JSON with a number as image": (JSON_TYPE, b'{"image": 3}'),
    "JSON with an empty image": (JSON_TYPE, b'{"image": ""}'),
    "JSON with bad base64": (JSON_TYPE, b'{"image": "/9j/4"}'),
    "JSON with base64 of text": (JSON_TYPE, image_json(b"text").encode()),
    "JSON list with one bad photo": (JSON_TYPE, f"[{image_json(RED)},{image_json(b'text')}]".encode()),
    "JSON with bytes that are not UTF-8": (JSON_TYPE, b'{"image": "\xff"}'),
    "JSON with an address": (JSON_TYPE, b'{"url": "https://host/dog.jpg"}'),
    "JSON with an address of this machine": (JSON_TYPE, b'{"url": "http://169.254.169.254/"}'),
    "type application/x-npy": ("application/x-npy", b"\x93NUMPY"),
    "type text/plain": ("text/plain", RED),
    "type of a form": ("application/x-www-form-urlencoded", b"photo=1"),
    "type of a multipart form": ("multipart/form-data; boundary=x", b"--x--"),
    "type image/gif": ("image/gif", picture("P", "GIF")),
    "type that is none": ("photo", RED),
    **tenths("JPEG"),
    **tenths("PNG"),
    **tenths("WEBP"),
}


def documented() -> dict[str, tuple[int, str]]:
    """Status and words for every input, from the page; "FORM cut at each tenth" stands for nine of them."""
    rows = re.findall(r"^\| (.+?) \| (\d{3}) \| (.*?) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    found = {name: (int(status), words.replace("`", "")) for name, status, words in rows}
    for form in ("JPEG", "PNG", "WEBP"):
        answer = found.pop(f"{form} cut at each tenth")
        found |= {f"{form} cut at {tenth}0 %": answer for tenth in range(1, 10)}
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as started:
        yield started


def test_the_page_and_the_inputs_are_the_same() -> None:
    assert list(documented()) == list(INPUTS)
    assert len(INPUTS) >= 60


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_is_answered_as_documented(server: Running, name: str) -> None:
    content_type, body = INPUTS[name]
    expected, words = documented()[name]
    status, answer, headers = server.ask(body=body, content_type=content_type)
    assert headers["content-type"] == "application/json"
    assert b"Traceback" not in answer
    said = json.loads(answer)
    assert status == expected, said
    if status != 200:
        assert set(said["error"]) == {"status", "problem", "accepted"}
        assert words in said["error"]["problem"]
    else:
        answers = said.get("answers", [said])
        assert {one["predictions"][0]["label"] for one in answers} == {"red"}
    assert is_right(server)


def is_right(server: Running) -> bool:
    """Whether a plain photo is still answered as at first."""
    status, answer, _ = server.ask(body=photo("blue"))
    return status == 200 and json.loads(answer)["predictions"][0]["label"] == "blue"


def mutations(count: int) -> Iterator[bytes]:
    """Valid files with some bytes changed, a third of them cut; the same each time."""
    chosen = random.Random(0)
    seeds = [noise(form) for form in ("JPEG", "PNG", "WEBP")]
    for _ in range(count):
        data = bytearray(chosen.choice(seeds))
        for _ in range(chosen.choice((1, 3, 30))):
            data[chosen.randrange(len(data))] = chosen.randrange(256)
        if chosen.random() < 0.3:
            del data[chosen.randrange(len(data)) :]
        yield bytes(data)


@pytest.mark.slow
def test_a_thousand_mutations_are_answered_or_refused(server: Running) -> None:
    for data in mutations(1000):
        status, answer, _ = server.ask(body=data, content_type=ANY)
        assert status in (200, 400, 413), (status, answer, data.hex())
        assert "predictions" in json.loads(answer) or "error" in json.loads(answer)
        assert is_right(server), data.hex()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("st") is None, reason="needs schemathesis: make test-schemathesis")
def test_schemathesis_finds_no_failure_in_the_description(server: Running) -> None:
    # No schema can say what a photo is, so one that it makes up may well be refused.
    command = ["st", "run", f"http://127.0.0.1:{server.port}/openapi.json", "--seed", "1", "--no-color"]
    command += ["--exclude-checks", "positive_data_acceptance", "--max-examples", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout
    assert is_right(server)
