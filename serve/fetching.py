"""A photo behind an address, fetched so that nobody can make the server look around its own network.

A host is resolved once, its addresses are judged, and the connection goes to the address that was
judged: a name that resolves differently the second time gains nothing. Each redirect starts over.
No refusal repeats an address: it may hold a password or a signature, and refusals are logged.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

from serve.refusals import Refusal

ACCEPTED_ADDRESS = "an address may be https://HOST/PATH, port 443, HOST on the public internet, without a password"
REDIRECTS = 3

_MOVED = (301, 302, 303, 307, 308)
_CHUNK = 1 << 16
# Addresses that stand for an IPv4 address and may be routed to it (RFC 6052, 8215, 3056, 4291 2.5.5.1, 2765, 7526), and
# site-local ones, which RFC 3879 gave up and networks may still use.
_NOT_ITSELF = tuple(
    ipaddress.ip_network(net)
    for net in (
        *("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "::/96", "::ffff:0:0:0/96", "fec0::/10"),
        "192.88.99.0/24",
    )
)


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet and stands for no other address.

    `is_global` alone knows private, loopback, link-local and shared (100.64.0.0/10, RFC 6598) ranges, but
    lets multicast and most translated forms pass. A zone (fe80::1%eth0) is never public.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and (ip.ipv4_mapped or ip.scope_id or ip.teredo):
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in net for net in _NOT_ITSELF)


def resolve_public(host: str, port: int) -> str:
    """The first IP address of a host; Refusal 403 if any of its addresses is not public, 400 if there is none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refusal(400, f"the host {host[:100]!r} is not known", ACCEPTED_ADDRESS) from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_public(address):
            raise Refusal(403, f"the host {host[:100]!r} is not on the public internet", ACCEPTED_ADDRESS)
    return addresses[0]


class Fetcher:
    """Fetches the photos of requests: `fetcher.begin()` gives what fetches those of one.

    Args:
        size: the most bytes that are read of each.
        seconds: for all photos of a request: handshakes, redirects, reading. Looking a host up takes what the
            system's resolver takes.
        hosts: that are visited; empty: every public one.
        resolve: host and port to the one IP address to connect to; raises Refusal.
        port: the only port that is connected to.
        context: what certificates are checked with; the system's by default.
    """

    def __init__(
        self,
        size: int,
        seconds: float,
        *,
        hosts: Collection[str] = (),
        resolve: Callable[[str, int], str] = resolve_public,
        port: int = 443,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.size = size
        self.seconds = seconds
        self.hosts = [host.lower() for host in hosts]
        self.resolve = resolve
        self.port = port
        self.context = context or ssl.create_default_context()

    def begin(self) -> Callable[[str], bytes]:
        """What fetches the photos of one request; its time runs from now."""
        return partial(self.fetch, deadline=time.monotonic() + self.seconds)

    def fetch(self, address: str, deadline: float) -> bytes:
        """The photo behind an address, before a deadline of `time.monotonic`.

        Raises Refusal: 400 for an address that cannot be used or does not answer with a photo, 403 for
        one that is not public or not of `hosts`, 413 for too many bytes, 504 past the time.
        """
        base = ""
        for _ in range(REDIRECTS + 1):
            parts = self._check(base, address)
            answer = self._visit(parts, deadline)
            if isinstance(answer, bytes):
                return answer
            base, address = urlunsplit(parts), answer
        raise Refusal(400, f"the address is redirected more than {REDIRECTS} times", ACCEPTED_ADDRESS)

    def _check(self, base: str, address: str) -> SplitResult:
        try:
            address = urljoin(base, address)
            parts = urlsplit(address)
            port = parts.port or 443
            host = parts.hostname or ""
            host.encode("idna")
        except ValueError as error:
            raise Refusal(400, "the address cannot be read", ACCEPTED_ADDRESS) from error
        if not address.isascii() or not address.isprintable() or " " in address:
            raise Refusal(400, "the address holds what none can hold", ACCEPTED_ADDRESS)
        if parts.scheme != "https" or not host or port != self.port:
            raise Refusal(400, "the address is not one of https and port 443", ACCEPTED_ADDRESS)
        if "@" in parts.netloc:
            raise Refusal(400, "the address holds a user or a password", ACCEPTED_ADDRESS)
        if self.hosts and host not in self.hosts:
            raise Refusal(403, f"the host {host[:100]!r} is not fetched from", f"hosts may be {', '.join(self.hosts)}")
        return parts

    def _visit(self, parts: SplitResult, deadline: float) -> bytes | str:
        """The bytes at one address, or where it redirects to."""
        host = str(parts.hostname)
        if time.monotonic() >= deadline:  # of a list, those after the one that took it all are not even looked up
            raise self._late()
        ip = self.resolve(host, self.port)
        timeout = deadline - time.monotonic()
        if timeout <= 0:
            raise self._late()
        try:
            with (
                socket.create_connection((ip, self.port), timeout) as plain,
                _cut_at(plain, deadline),
                self.context.wrap_socket(plain, server_hostname=host) as secure,
            ):
                answer = self._ask(secure, parts)
            if time.monotonic() >= deadline:  # a connection that was cut looks like one that has ended
                raise self._late()
            return answer
        except (HTTPException, OSError) as error:
            if time.monotonic() >= deadline or isinstance(error, TimeoutError):
                raise self._late() from error
            problem = f"the host {host[:100]!r} did not answer as it should: {type(error).__name__}"
            raise Refusal(400, problem, ACCEPTED_ADDRESS) from error

    def _ask(self, secure: ssl.SSLSocket, parts: SplitResult) -> bytes | str:
        connection = HTTPConnection(str(parts.hostname), self.port)  # without it, a port is looked for in the host
        connection.sock = secure
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Host": parts.netloc, "Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "graft"}
        connection.request("GET", target, headers=headers)
        with contextlib.closing(connection.getresponse()) as response:
            return self._read(response)

    def _read(self, response: HTTPResponse) -> bytes | str:
        if response.status in _MOVED and response.headers.get("Location"):
            return str(response.headers["Location"])
        if response.status != 200:
            raise Refusal(400, f"the address answered with {response.status}", ACCEPTED_ADDRESS)
        self._check_size(response.length or 0)
        chunks: list[bytes] = []
        size = 0
        while chunk := response.read(_CHUNK):
            chunks.append(chunk)
            size += len(chunk)
            self._check_size(size)
        if response.length:
            raise IncompleteRead(b"", response.length)
        return b"".join(chunks)

    def _check_size(self, size: int) -> None:
        if size > self.size:
            raise Refusal(413, f"the photo has {size} bytes or more", f"a photo may have {self.size} bytes")

    def _late(self) -> Refusal:
        return Refusal(504, f"the photos did not arrive within {self.seconds:g} s", "send the photos themselves")


@contextlib.contextmanager
def _cut_at(sock: socket.socket, deadline: float) -> Iterator[None]:
    """Shut a socket down at the deadline: its own timeout begins anew with every byte that drips in."""
    # TLS takes the socket over before its handshake; what is shut down here is the connection of both.
    same = sock.dup()

    def cut() -> None:
        with contextlib.suppress(OSError):
            same.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # a cut under way ends before the descriptor is given to another
        same.close()
