"""serve/fetching.py: which addresses are visited, and what becomes of those that misbehave."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serve.fetching import Fetcher, is_public, resolve_public
from serve.refusals import Refusal

VERSION_6 = "2606:4700::abcd"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "169.254.170.2",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
        "192.0.2.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "2002:7f00:1::",
        "2002:808:808::",
        "64:ff9b::7f00:1",
        "64:ff9b::808:808",
        "64:ff9b:1::a00:1",
        "2001:0:7f00:1::1",
        "2001:db8::1",
        "::7f00:1",
        "::ffff:0:7f00:1",
        "192.88.99.1",
        "fec0::1",
    ],
)
def test_addresses_that_are_never_visited(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"])
def test_addresses_of_the_public_internet(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2852039166", "0x7f.1", "::ffff:10.0.0.1", "0"])
def test_every_spelling_of_a_private_host_is_refused(host: str) -> None:
    with pytest.raises(Refusal, match=r"403: .* is not on the public internet"):
        resolve_public(host, 443)


@pytest.mark.parametrize(
    "address",
    [
        "http://host/",
        "file:///etc/passwd",
        "https://",
        "https://host:8443/",
        "https://user:secret@host/",
        "https://host:8443/?signature=secret",
        "https://host:port/",
        "https://[::1/",
        "gopher://host",
        "",
        "https://ho st/",
        "https://host/\r\nX: y",
        "https://hö/",
    ],
)
def test_addresses_that_are_refused_by_their_look(address: str) -> None:
    with pytest.raises(Refusal, match=r"400: the address .* an address may be https://HOST/PATH") as caught:
        Fetcher(100, 1.0, resolve=lambda host, port: pytest.fail("resolved")).begin()(address)
    assert "secret" not in str(caught.value)


def test_only_the_hosts_that_are_named_are_visited(site: tuple[int, Path]) -> None:
    fetch = fetcher(site, hosts=["Host"]).begin()
    assert fetch(f"https://host:{site[0]}/photo") == b"a photo"
    for address in (f"https://other:{site[0]}/photo", f"https://host:{site[0]}/elsewhere"):
        with pytest.raises(Refusal, match="403: the host 'other' is not fetched from; hosts may be host"):
            fetch(address)


class Site(BaseHTTPRequestHandler):
    """A host whose paths misbehave, each in its own way."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        port = self.headers["Host"].rpartition(":")[2]
        moved = {
            "/moved": "/photo",
            "/circle": "/circle",
            "/inside": f"https://inside:{port}/photo",
            "/elsewhere": f"https://other:{port}/photo",
            "/plain": "http://host/photo",
            "/torn": "https://[::1/photo",
        }
        if self.path in moved:
            self._answer(302, {"Location": moved[self.path]})
        elif self.path == "/long":
            self._answer(200, {}, b"x" * 5000)
        elif self.path == "/announced":
            self._answer(200, {"Content-Length": "5000"})
        elif self.path == "/cut":
            self._answer(200, {"Content-Length": "500"}, b"half a photo")
        elif self.path.startswith("/drip"):
            if self.path != "/drip":  # a whole head, with the body's length or without
                self._answer(200, {"Content-Length": "100"} if self.path == "/drip/100" else {})
            self._drip()
        else:
            self._answer(200 if self.path == "/photo?size=1" or self.path == "/photo" else 404, {}, b"a photo")

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _drip(self) -> None:
        try:
            for _ in range(100):
                self.wfile.write(b"H")
                time.sleep(0.05)
        except OSError:
            pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """A host on 127.0.0.1, its port and the certificate to trust."""
    folder = tmp_path_factory.mktemp("certificate")
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    made += ["-subj", "/CN=host", "-addext", f"subjectAltName=DNS:host,IP:{VERSION_6}"]
    made += ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1], folder / "cert.pem"
    server.shutdown()
    thread.join()
    server.server_close()


def fetcher(site: tuple[int, Path], seconds: float = 5.0, hosts: Sequence[str] = ()) -> Fetcher:
    def resolve(host: str, port: int) -> str:
        return "127.0.0.1" if host in ("host", "other", VERSION_6) else resolve_public("127.0.0.1", port)

    port, certificate = site
    context = ssl.create_default_context(cafile=str(certificate))
    return Fetcher(1000, seconds, hosts=hosts, resolve=resolve, port=port, context=context)


@pytest.mark.parametrize("path", ["photo", "photo?size=1", "moved"])
def test_a_photo_is_fetched(site: tuple[int, Path], path: str) -> None:
    assert fetcher(site).begin()(f"https://host:{site[0]}/{path}") == b"a photo"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("circle", "400: the address is redirected more than 3 times"),
        ("inside", "403: the host '127.0.0.1' is not on the public internet"),
        ("plain", "400: the address is not one of https and port 443"),
        ("torn", "400: the address cannot be read"),
        ("long", "413: the photo has 5000 bytes or more; a photo may have 1000 bytes"),
        ("announced", "413: the photo has 5000 bytes or more"),
        ("missing", "400: the address answered with 404"),
        ("cut", "400: the host 'host' did not answer as it should: IncompleteRead"),
    ],
)
def test_a_host_that_misbehaves(site: tuple[int, Path], path: str, message: str) -> None:
    with pytest.raises(Refusal) as caught:
        fetcher(site).begin()(f"https://host:{site[0]}/{path}")
    assert str(caught.value).startswith(message)


def test_a_host_may_be_an_address_of_version_6(site: tuple[int, Path]) -> None:
    assert fetcher(site).begin()(f"https://[{VERSION_6}]:{site[0]}/photo") == b"a photo"


def test_a_certificate_of_another_host_is_refused(site: tuple[int, Path]) -> None:
    with pytest.raises(Refusal, match="400: the host 'other' did not answer as it should: "):
        fetcher(site).begin()(f"https://other:{site[0]}/photo")


@pytest.mark.parametrize("path", ["drip", "drip/100", "drip/for-ever"])
def test_a_host_that_drips_is_cut_at_the_deadline(path: str, site: tuple[int, Path]) -> None:
    begun = time.monotonic()
    with pytest.raises(Refusal, match=r"504: the photos did not arrive within 0\.5 s"):
        fetcher(site, seconds=0.5).begin()(f"https://host:{site[0]}/{path}")
    assert time.monotonic() - begun < 1.5


def test_a_handshake_that_drips_is_cut_at_the_deadline() -> None:
    # A record of TLS that announces 16 kB, and then comes byte by byte: every byte would begin the socket's time anew.
    def drip(listener: socket.socket) -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as connection:
            connection.sendall(b"\x16\x03\x03\x40\x00")
            for _ in range(100):
                connection.sendall(b"x")
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        port = listener.getsockname()[1]
        begun = time.monotonic()
        with pytest.raises(Refusal, match=r"504: the photos did not arrive within 0\.5 s"):
            Fetcher(1000, 0.5, resolve=lambda *_: "127.0.0.1", port=port).begin()(f"https://host:{port}/photo")
        assert time.monotonic() - begun < 1.5
        thread.join()


def test_the_photos_of_a_request_share_its_time(site: tuple[int, Path]) -> None:
    fetch = fetcher(site, seconds=0.5).begin()
    assert fetch(f"https://host:{site[0]}/photo") == b"a photo"
    begun = time.monotonic()
    for path in ("drip", "photo"):  # the second would be there at once
        with pytest.raises(Refusal, match=r"504: the photos did not arrive within 0\.5 s"):
            fetch(f"https://host:{site[0]}/{path}")
    assert time.monotonic() - begun < 1.5
