"""Several processes on this machine, through torch's elastic launcher: what `torchrun` does, with plain errors."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from graft.environment import available_cores
from graft.errors import RunError
from graft.terminal import say

GRACE_S = 30  # between SIGTERM and SIGKILL


def run_together(command: Sequence[str], processes: int) -> None:
    """Run a Python command in several processes that train together; the first one has the terminal.

    Args:
        command: script and arguments.
        processes: how many.

    Raises:
        RunError: a process other than the first failed; with the end of what it said.
        SystemExit: the first one failed, or all were told to stop.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(available_cores() // processes, 1)))
    logs = Path(tempfile.mkdtemp(prefix="graft-"))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        shutdown_timeout=GRACE_S,
        logs_specs=DefaultLogsSpecs(str(logs), redirects=dict.fromkeys(range(1, processes), Std.ALL)),
    )
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        leader = error.failures.get(0)
        if leader is not None and leader.exitcode > 0:
            raise SystemExit(leader.exitcode) from None
        rank, failure = error.get_first_failure()
        raise RunError(
            f"process {rank} of {processes} ended with code {failure.exitcode}: {_said(logs, rank)}"
        ) from None
    except SignalException as stopped:
        say("stopped; the same command with the same run_dir goes on from here")
        raise SystemExit(128 + stopped.sigval) from None
    finally:
        shutil.rmtree(logs, ignore_errors=True)


def _said(logs: Path, rank: int) -> str:
    """The last line that a process wrote to stderr."""
    found = sorted(logs.glob(f"**/{rank}/stderr.log"))
    lines = found[-1].read_text(errors="replace").strip().splitlines() if found else []
    return lines[-1] if lines else "it said nothing"
