"""What reading and listing S3 costs this machine: seconds and CPU time of the client per object.

    python -m benchmarks.s3 [--objects 2000] [--listed 1000000] [--rounds 3]

Objects of 20 to 100 KB are read by 16 threads from moto's server, which runs on the same machine in a process of its
own and is what limits the seconds; CPU time is that of the reading process alone, with all its threads. Every way reads
all objects `rounds` times, and its best round counts. s3torchconnector is measured where it is installed; it is no
dependency. The listing comes from a server that does nothing but write pages.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from graft.s3 import S3Store
from graft.s3.connection import Connection
from graft.s3.versions import read_tag

BUCKET = "bench"
THREADS = 16
FOLDERS = 100

Read = Callable[[str], bytes]


@contextmanager
def server(module: str, *arguments: str) -> Iterator[str]:
    """A server in a process of its own, to which boto3 is pointed; yields its URL."""
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    os.environ.update(
        AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x", AWS_DEFAULT_REGION="us-east-1"
    )
    try:
        yield url
    finally:
        process.stdin.close()
        process.wait()


def fill(count: int) -> None:
    """Put the objects, of sizes that a seed gives."""
    client = Connection("", BUCKET).client
    client.create_bucket(Bucket=BUCKET)
    rng = np.random.default_rng(0)
    blob = rng.bytes(100_000)

    def put(item: tuple[int, int]) -> None:
        client.put_object(Bucket=BUCKET, Key=f"{item[0]:06d}.jpg", Body=item[0].to_bytes(4, "big") + blob[: item[1]])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, enumerate(rng.integers(20_000, 100_000, count).tolist())))


def ways(url: str, tags: dict[str, bytes]) -> dict[str, Read]:
    """Each way to read an object, by name; all ask for the version that was listed, where they can."""
    store, connection = S3Store(f"s3://{BUCKET}"), Connection("", BUCKET)
    versions = {name: read_tag(tag) for name, tag in tags.items()}

    def get_object(name: str) -> bytes:
        version = versions[name]
        assert version is not None
        answer = connection.client.get_object(Bucket=BUCKET, Key=name, IfMatch=version.etag)
        data: bytes = answer["Body"].read()
        return data

    def download_fileobj(name: str) -> bytes:
        buffer = io.BytesIO()
        connection.client.download_fileobj(BUCKET, name, buffer)
        return buffer.getvalue()

    found: dict[str, Read] = {
        "S3Store.read: transfer manager, one for all, checked": lambda name: store.read(name, tags[name]),
        "boto3 get_object": get_object,
        "boto3 download_fileobj: a transfer manager per object": download_fileobj,
    }
    try:
        from s3torchconnectorclient._mountpoint_s3_client import (  # type: ignore[import-not-found,unused-ignore]
            MountpointS3Client,
        )
    except ImportError:
        return found
    fast: Any = MountpointS3Client("us-east-1", "graft", endpoint=url, force_path_style=True)
    return {**found, "s3torchconnector": lambda name: b"".join(fast.get_object(BUCKET, name))}


def measure(read: Read, names: list[str]) -> tuple[float, float]:
    """Seconds, and milliseconds of CPU per object, of reading them all once."""
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, names[:THREADS]))
        start, cpu = time.perf_counter(), time.process_time()
        list(pool.map(read, names))
        return time.perf_counter() - start, (time.process_time() - cpu) / len(names) * 1000


def read_objects(count: int, rounds: int) -> None:
    """Print a line per way."""
    with server("tests.s3server") as url:
        fill(count)
        found = S3Store(f"s3://{BUCKET}").list("")
        tags = dict(zip(found.names, found.tags.tolist(), strict=True))
        for name, read in ways(url, tags).items():
            seconds, cpu = (
                min(values) for values in zip(*(measure(read, [*tags]) for _ in range(rounds)), strict=True)
            )
            print(f"{name:54} {seconds:6.2f} s {cpu:6.2f} ms CPU per object", flush=True)


def list_objects(count: int) -> None:
    """Print what listing costs."""
    with server("benchmarks.s3", "--serve", str(count)):
        before, cpu, start = peak_mb(), time.process_time(), time.perf_counter()
        found = S3Store(f"s3://{BUCKET}").list("")
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        assert len(found.names) == count // FOLDERS * FOLDERS
        print(
            f"list {len(found.names):,}: {seconds:.1f} s, {cpu:.1f} s CPU, {peak_mb() - before:.0f} MB more at the peak"
        )


def peak_mb() -> float:
    """The most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class _Pages(BaseHTTPRequestHandler):
    """Answers list_objects_v2 for FOLDERS folders of the same number of objects, and nothing else."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    per_folder = 0

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer("")

    def do_GET(self) -> None:
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        if "delimiter" in query:
            names = "".join(f"<CommonPrefixes><Prefix>{n:03d}/</Prefix></CommonPrefixes>" for n in range(FOLDERS))
            self._answer(f"<ListBucketResult><IsTruncated>false</IsTruncated>{names}</ListBucketResult>")
            return
        prefix = query.get("prefix", "")
        first = int(prefix.strip("/")) * self.per_folder if prefix else 0
        end = first + self.per_folder if prefix else FOLDERS * self.per_folder
        if after := query.get("start-after"):
            first = int(after[-15:-4]) + 1
        start = int(query.get("continuation-token", first))
        stop = min(start + 1000, end)
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{stop}</NextContinuationToken>"
        head = more if stop < end else "<IsTruncated>false</IsTruncated>"
        self._answer(f"<ListBucketResult>{head}{''.join(map(self._entry, range(start, stop)))}</ListBucketResult>")

    def _entry(self, n: int) -> str:
        key = f"{n // self.per_folder:03d}/photo_{n:011d}.jpg"
        return (
            f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;{n:032x}"
            "&quot;</ETag><Size>100000</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def serve(count: int) -> None:
    """Be the server of `list_objects` until stdin closes."""
    import threading

    _Pages.per_folder = count // FOLDERS
    pages = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{pages.server_address[1]}", flush=True)
    sys.stdin.read()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--listed", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    list_objects(arguments.listed)
    read_objects(arguments.objects, arguments.rounds)


if __name__ == "__main__":
    main()
