"""`python -m serve predict PHOTO... url=URL`: a server asked over HTTP, and told in the words of a model here."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from graft.errors import CloudError, ConfigError
from serve.__main__ import main
from serve.url_predicting import ask, invocations_of
from tests.serving import Running, photo, running

DOUBTS = {"unsure": False, "not_one_of_these": False}


@pytest.fixture(scope="module")
def colours() -> Iterator[Running]:
    with running() as server:
        yield server


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of a red photo, a blue one, and a text that calls itself a photo."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(photo("red"))
    (folder / "b.jpg").write_bytes(photo("blue"))
    (folder / "c.jpg").write_text("no photo")
    return folder


@pytest.mark.parametrize("form", ["url=http://127.0.0.1:{}", "--url http://127.0.0.1:{}/invocations"])
def test_a_server_is_asked(form: str, colours: Running, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(photos), *form.format(colours.port).split(), "--json", "serve.top_k=2"])
    assert ended.value.code == 1
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert [guess["label"] for guess in first["predictions"]] == ["red", "green"]
    assert second["predictions"][0]["label"] == "blue"
    assert third["problem"].startswith("the photo cannot be read: 8 bytes starting b'no photo'")


def test_a_folder_becomes_a_csv(
    colours: Running, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "said.csv"
    with pytest.raises(SystemExit):
        main(["predict", str(photos), f"url=http://127.0.0.1:{colours.port}", f"output={output}"])
    assert "2 photos answered, 1 not readable" in capsys.readouterr().out
    assert [row["class_1"] for row in csv.DictReader(output.read_text().splitlines())] == ["red", "blue", ""]


def test_an_address_that_is_none_is_refused() -> None:
    for url in ("127.0.0.1:8080", "ftp://host/x", "http://", "http://[::1:8080"):
        with pytest.raises(ConfigError, match=rf"url={re.escape(url)} is no address of a server.*: http://HOST:PORT"):
            invocations_of(url, 5)
    assert invocations_of("https://host/dogs/invocations", 3) == "https://host/dogs/invocations?top_k=3"


def test_a_server_that_is_not_there_is_named(photos: Path) -> None:
    with pytest.raises(CloudError, match=r"cannot be reached .*refused.*`python -m serve local` starts a server"):
        ask(photos / "a.jpg", "http://127.0.0.1:1/invocations")


def test_a_busy_server_is_asked_again_and_what_came_before_is_kept(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("serve.remote.time.sleep", pauses.append)
    monkeypatch.setattr("serve.remote.AT_ONCE", 1)
    busy = 503, '{"error": {"problem": "64 requests are waiting already", "accepted": "try again"}}'
    right = 200, json.dumps({"predictions": [{"label": "red", "index": 0, "probability": 1}], **DOUBTS})
    output = tmp_path / "said.csv"
    with answering([busy, busy, right, *[busy] * 10]) as port, pytest.raises(SystemExit):
        main(["predict", str(photos), f"url=http://127.0.0.1:{port}", f"output={output}"])
    assert pauses[:6] == [1, 2, 1, 2, 4, 8]
    said = capsys.readouterr()
    assert "1 photos answered, 0 not readable" in said.out
    assert "has them all but the 2 after them" in said.out
    assert "answers with 503: 64 requests are waiting already" in said.err
    assert [row["class_1"] for row in csv.DictReader(output.read_text().splitlines())] == ["red"]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, "<html>", "answers with b'<html>'; accepted is a server"),
        (500, "<html>", "answers with 500: b'<html>'"),
        (503, '{"error": {"problem": "it is full", "accepted": "ask later"}}', "with 503: it is full; ask later"),
    ],
)
def test_another_answer_is_no_answer(status: int, body: str, said: str, photos: Path) -> None:
    with answering([(status, body)]) as port, pytest.raises(CloudError, match=said):
        ask(photos / "a.jpg", f"http://127.0.0.1:{port}/invocations")


@contextmanager
def answering(answers: Sequence[tuple[int, str]]) -> Iterator[int]:
    """The port of a server that gives these answers, one after the other."""
    left = list(answers)

    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = left.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()
