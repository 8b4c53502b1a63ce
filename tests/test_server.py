"""serve/server.py and app.py on a real socket, with a model that tells colours."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graft.errors import RunError
from graft.images import Pixels
from serve.answers import Answer
from serve.layout import Layout, lay_out
from serve.metrics import Metrics
from serve.queue import Queue
from serve.reading import Limits
from serve.refusals import Refusal
from tests.serving import ColourModel, Running, photo, running, wait_for

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def colours() -> Iterator[Running]:
    with running() as server:
        yield server


def test_a_photo_is_answered_with_its_colour(colours: Running) -> None:
    status, body, headers = colours.ask(body=photo("red"), content_type="image/jpeg")
    answer = json.loads(body)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert [guess["label"] for guess in answer["predictions"]] == ["red", "green", "blue"]
    assert answer["predictions"][0]["probability"] > 0.99
    assert (answer["model"], answer["unsure"], answer["not_one_of_these"]) == ("colours-1", False, False)


def test_a_list_is_answered_in_its_order(colours: Running) -> None:
    entries = [{"image": base64.b64encode(photo(colour)).decode()} for colour in ("blue", "lime")]
    _, body, _ = colours.ask("/invocations?top_k=1", json.dumps(entries).encode(), content_type="application/json")
    assert [answer["predictions"][0]["label"] for answer in json.loads(body)["answers"]] == ["blue", "green"]


def test_logits_and_csv_by_accept(colours: Running) -> None:
    _, logits, _ = colours.ask(body=photo("blue", "PNG"), accept="application/json;format=logits")
    assert json.loads(logits) == [[0.0, 0.0, 255.0]]
    _, table, headers = colours.ask(body=photo("blue", "PNG"), accept="text/csv")
    assert headers["content-type"].startswith("text/csv")
    assert table.splitlines()[1].startswith(b"0,1,blue,2,")


def test_what_the_model_saw_is_sent_along_where_it_is_asked_for(colours: Running) -> None:
    answer = json.loads(colours.ask("/invocations?photo=true", photo("blue"))[1])
    kind, _, data = answer["photo"].partition(",")
    assert kind == "data:image/jpeg;base64"
    seen = Image.open(io.BytesIO(base64.b64decode(data)))
    assert seen.size == (32, 32)
    assert seen.getpixel((16, 16)) == pytest.approx((0, 0, 255), abs=3)
    assert "photo" not in json.loads(colours.ask("/invocations?photo=false", photo("blue"))[1])
    status, body, _ = colours.ask("/invocations?photo=1", photo("blue"))
    assert (status, json.loads(body)["error"]["accepted"]) == (400, "photo may be true or false")


def test_boto3s_path_is_answered_too(colours: Running) -> None:
    assert colours.ask("/endpoints/dogs/invocations", photo())[0] == 200


@pytest.mark.parametrize("top_k", ["0", "-1", "x", "", "1e3", "9" * 5000, "%D9%A3"])
def test_a_wrong_top_k_is_refused(colours: Running, top_k: str) -> None:
    status, body, _ = colours.ask(f"/invocations?top_k={top_k}", photo())
    assert (status, json.loads(body)["error"]["accepted"]) == (400, "top_k may be 1 to 999999")


def test_paths_and_methods_that_are_not_there(colours: Running) -> None:
    status, body, _ = colours.ask("/models")
    assert (status, json.loads(body)["error"]["problem"]) == (404, "GET /models is not answered: Not Found")
    status, body, headers = colours.ask("/invocations")
    assert (status, headers["allow"]) == (405, "POST")


def test_metrics_count_by_status_and_stage(colours: Running) -> None:
    colours.ask(body=photo())
    text = colours.ask("/metrics")[1].decode()
    assert 'graft_requests_total{status="200"}' in text
    for stage in ("read", "decode", "infer", "total"):
        assert f'graft_stage_seconds_count{{stage="{stage}"}}' in text
    assert "graft_requests_inside 0.0" in text


@pytest.mark.parametrize(
    "error", [RunError("the engine does not reproduce sample 03"), ModuleNotFoundError("No module named 'torch'")]
)
def test_a_model_that_cannot_be_served_is_never_healthy(error: Exception) -> None:
    def load() -> ColourModel:
        raise error

    with running(load) as server:
        for path, body in (("/ping", None), ("/invocations", photo())):
            status, answer, _ = server.ask(path, body)
            problem = f"the model cannot be served: {error}"
            assert (status, json.loads(answer)["error"]["problem"]) == (503, problem)


def test_a_fault_of_the_model_shows_no_traceback(colours: Running) -> None:
    class Faulty(ColourModel):
        def predict(self, images: Pixels) -> list[Answer]:
            raise KeyError("secret")

    with running(Faulty) as server:
        status, body, _ = server.ask(body=photo())
    error = {"status": 500, "problem": "the server failed", "accepted": "try again, or tell who runs it"}
    assert (status, json.loads(body)) == (500, {"error": error})


def test_what_is_left_of_a_refused_list_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its place is free again by then: what went on would be bounded by nothing.
    decoded: list[bytes] = []

    def decode(data: bytes, *_: object) -> Pixels:
        decoded.append(data)
        if data == b"bad":
            raise Refusal(400, "it is bad", "a good one")
        time.sleep(0.05)
        return np.zeros((32, 32, 3), np.uint8)

    monkeypatch.setattr("serve.queue.decode", decode)
    queue = Queue(1, Layout(threads=1, streams=1, decoders=1), Metrics())

    async def ask() -> None:
        with pytest.raises(Refusal, match="it is bad"):
            await queue.answers(ColourModel(), [b"bad", *[b"slow"] * 20], Limits())
        await queue.photos(b"another", "image/jpeg", Limits(), None)  # waits for the only decoder

    asyncio.run(ask())
    queue.close()
    assert len(decoded) <= 2  # one may have begun


def test_addresses_do_not_keep_photos_waiting() -> None:
    waiting, go_on = threading.Semaphore(0), threading.Event()

    def fetch(address: str) -> bytes:
        waiting.release()
        assert go_on.wait(10)
        return photo("blue")

    with running(places=20) as server, ThreadPoolExecutor(8) as clients:
        server.service.begin_fetching = lambda: fetch
        body = b'{"url": "https://slow"}'
        slow = [clients.submit(server.ask, body=body, content_type="application/json") for _ in range(8)]
        for _ in slow:
            assert waiting.acquire(timeout=10)
        assert server.ask(body=photo("red"))[0] == 200
        go_on.set()
        assert {json.loads(answer.result()[1])["predictions"][0]["label"] for answer in slow} == {"blue"}


def test_a_full_queue_refuses_at_once_and_loses_nothing() -> None:
    with running(lambda: ColourModel(0.3), places=2) as server, ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda _: server.ask(body=photo()), range(6)))
        assert sorted(status for status, _, _ in answers) == [200, 200, 503, 503, 503, 503]
        refused = next(headers for status, _, headers in answers if status == 503)
        assert refused["retry-after"] == "1"
        assert server.service.queue.inside == 0


def test_a_request_past_its_deadline_is_answered_with_504() -> None:
    with running(lambda: ColourModel(0.6), deadline=0.2) as server:
        status, body, _ = server.ask(body=photo())
        assert (status, json.loads(body)["error"]["problem"]) == (504, "no answer within 0.2 s")
        assert server.service.queue.inside == 0


def raw(server: Running, data: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    client.sendall(data)
    return client


def test_a_client_that_drips_its_body_loses_its_place() -> None:
    with running(deadline=0.3, places=1) as server:
        with raw(server, b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n\r\nx") as client:
            assert client.recv(1000).startswith(b"HTTP/1.1 504")
        assert server.ask(body=photo())[0] == 200


def test_a_client_that_drips_its_head_is_cut_off() -> None:
    with running(patience=0.2) as server, raw(server, b"POST /invoc") as client:
        assert client.recv(1000) == b""


def test_a_client_that_drips_on_after_its_answer_is_cut_off() -> None:
    head = b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\n\r\n"
    with running(patience=0.3) as server, raw(server, head) as client:
        assert client.recv(1000).startswith(b"HTTP/1.1 413")
        client.settimeout(0.05)
        wait_for(lambda: is_closed_to_drops(client), seconds=5)


def is_closed_to_drops(client: socket.socket) -> bool:
    try:
        client.sendall(b"x")
        return client.recv(1000) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_client_that_sends_the_rest_of_a_refused_body_keeps_its_connection() -> None:
    body = bytes(200_000)
    head = b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
    with running(patience=0.5) as server, raw(server, head) as client:
        answer = b""
        while not answer.endswith(b"}}"):
            answer += client.recv(1000)
        assert answer.startswith(b"HTTP/1.1 413")
        client.sendall(body)
        time.sleep(0.7)  # longer than the patience: it owes nothing any more
        client.sendall(b"GET /ping HTTP/1.1\r\nHost: h\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")


PING = b"GET /ping HTTP/1.1\r\nHost: h\r\n\r\n"


def status_from(client: socket.socket) -> int:
    """The status of the next answer, which is read to its end."""
    answer = http.client.HTTPResponse(client)
    answer.begin()
    answer.read()
    return answer.status


def test_idle_connections_make_room_the_oldest_first() -> None:
    with running(connections=3) as server, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(contextlib.closing(raw(server, PING))) for _ in range(3)]
        assert [status_from(client) for client in idle] == [200, 200, 200]
        # A fourth: SageMaker's /ping must not fail for what others keep open.
        assert server.ask("/ping")[0] == 200
        assert idle[0].recv(1000) == b""
        for client in idle[1:]:
            client.sendall(PING)
            assert status_from(client) == 200


def test_a_connection_at_work_is_not_closed_for_another() -> None:
    body = photo()
    head = b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
    with running(lambda: ColourModel(0.5), connections=2) as server, raw(server, head + body) as working:
        wait_for(lambda: server.service.queue.inside == 1)
        with raw(server, b"") as waiting, raw(server, PING) as client:
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
            assert waiting.recv(1000) == b""
        assert working.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_client_that_goes_away_frees_its_place_before_the_model_is_done() -> None:
    with running(lambda: ColourModel(1.0), places=1) as server:
        body = photo()
        head = b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
        with raw(server, head + body):
            wait_for(lambda: server.service.queue.inside == 1)
        wait_for(lambda: server.service.queue.inside == 0, seconds=0.5)


def test_a_stop_answers_what_is_inside() -> None:
    with running(lambda: ColourModel(0.2)) as server, ThreadPoolExecutor(6) as clients:
        asked = [clients.submit(server.ask, body=photo()) for _ in range(6)]
        wait_for(lambda: server.service.queue.inside == 6)
        server.server.should_exit = True
        assert [answer.result()[0] for answer in asked] == [200] * 6


def test_chunks_without_a_length_are_read_and_measured(colours: Running) -> None:
    head = b"POST /invocations HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = photo()
    with raw(colours, head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)) as client:
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    with raw(colours, head + b"%x\r\n%s\r\n" % (100_001, bytes(100_001))) as client:
        assert client.recv(1000).startswith(b"HTTP/1.1 413")


def test_pipelined_requests_are_answered_in_order(colours: Running) -> None:
    body = photo("blue")
    post = b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with raw(colours, post + b"GET /ping HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n") as client:
        answer = b"".join(iter(lambda: client.recv(10_000), b""))
    assert answer.index(b'"blue"') < answer.index(b'"healthy"')


def test_threads_follow_the_mode_and_the_cores() -> None:
    assert lay_out("latency", None, cores=4) == Layout(threads=4, streams=1, decoders=4)
    assert lay_out("throughput", None, cores=4) == Layout(threads=4, streams=4, decoders=4)
    assert lay_out("throughput", 2, cores=4) == Layout(threads=2, streams=2, decoders=4)


STARTED_BY_ITSELF = """
from tests.serving import ColourModel
from serve.app import Service
from serve.layout import Layout
from serve.metrics import Metrics
from serve.queue import Queue
from serve.reading import Limits
from serve.server import make_server

queue = Queue(8, Layout(1, 1, 2), Metrics())
server = make_server(Service(lambda: ColourModel(0.2), queue, Limits(), 10.0), "127.0.0.1", {port})
server.run()
"""


def test_sigterm_answers_what_is_inside_and_ends() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", STARTED_BY_ITSELF.format(port=port)], cwd=ROOT)
    try:
        wait_for(lambda: is_healthy(port), seconds=60)
        with ThreadPoolExecutor(4) as clients:
            asked = [clients.submit(invoke, port) for _ in range(4)]
            wait_for(lambda: b"graft_requests_inside 4.0" in get(port, "/metrics")[1])
            process.terminate()
            assert [status.result() for status in asked] == [200] * 4
        # uvicorn answers what is inside, then ends by the signal as it would have without it.
        assert process.wait(10) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


def invoke(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", "/invocations", photo(), {"Content-Type": "image/jpeg"})
        return connection.getresponse().status


def is_healthy(port: int) -> bool:
    try:
        return get(port, "/ping")[0] == 200
    except OSError:
        return False
