"""`make local-aws`: the local AWS until Ctrl-C, for who wants to try the cloud commands without an account."""

from __future__ import annotations

import argparse
import signal
import tempfile
import threading
from pathlib import Path

from tests.aws.account import ACCOUNT, KEYS
from tests.aws.server import BUCKET, ROLE, running_aws
from tests.conftest import TOOLKIT


def main() -> None:
    """Serve until SIGINT or SIGTERM; nothing is left behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.aws", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    arguments = parser.parse_args()
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())
    with (
        tempfile.TemporaryDirectory(prefix="graft-aws-") as folder,
        running_aws(Path(folder), TOOLKIT, arguments.port) as aws,
    ):
        for name, value in {"AWS_ENDPOINT_URL": aws.url, **KEYS}.items():
            print(f"export {name}={value}")
        role = f"launcher.role=arn:aws:iam::{ACCOUNT}:role/{ROLE}"
        print("\nIn another terminal, after these lines:")
        print(f"  python -m graft.data upload PHOTOS s3://{BUCKET}/photos")
        print(
            f"  python train.py trainer=sagemaker_cpu data=folder data.root=s3://{BUCKET}/photos "
            f"{role} launcher.bucket={BUCKET}\n"
        )
        print(
            "Jobs and endpoints run as processes of this machine. Ctrl-C ends all, and deletes what they left.",
            flush=True,
        )
        stop.wait()
        print("stopping", flush=True)


if __name__ == "__main__":
    main()
