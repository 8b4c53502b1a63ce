"""A PostgreSQL server for a test: Debian's, on a free local port, by a user who is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Postgres:
    """A server that runs: the URL of its database."""

    url: str


def programs() -> Path | None:
    """Where initdb and postgres are: Debian keeps them out of PATH, by version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parents[1].name))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextmanager
def running(directory: Path) -> Iterator[Postgres]:
    """Start a server whose data lies below `directory`, and end it; skips the test where there is none."""
    where = programs()
    if where is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="needs psycopg")
    # root may not run it, and another user does not reach into root's temporary folder
    user = pwd.getpwnam("postgres" if _is_user("postgres") else "nobody") if os.getuid() == 0 else None
    data = Path(tempfile.mkdtemp(prefix="graft-postgres-")) if user else directory
    if user:
        os.chown(data, user.pw_uid, user.pw_gid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    own = {"cwd": data, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(data)}, **as_user}
    command = [where / "initdb", "-D", data / "db", "-U", "graft", "--auth=trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **own)  # type: ignore[call-overload]
    settings = ["-F", "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={data}", "-p", str(port)]
    with (directory / "log").open("w") as log:
        server = subprocess.Popen([where / "postgres", "-D", data / "db", *settings], stdout=log, stderr=log, **own)  # type: ignore[call-overload]
        try:
            ready = [str(where / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-t", "1"]
            for _ in range(100):
                if subprocess.run(ready, stdout=subprocess.DEVNULL).returncode == 0:
                    break
                time.sleep(0.1)
            else:
                raise AssertionError(f"PostgreSQL did not start: {(directory / 'log').read_text()}")
            yield Postgres(f"postgresql+psycopg://graft@127.0.0.1:{port}/postgres")
        finally:
            server.send_signal(signal.SIGINT)  # at SIGTERM it waits until all clients have gone
            server.wait()
            if user:
                shutil.rmtree(data)


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
