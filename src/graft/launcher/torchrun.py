"""Several processes, here and on other machines, through torch's elastic launcher: `torchrun` with plain errors."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graft.environment import available_cores
from graft.errors import RunError
from graft.terminal import say

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

GRACE_S = 30  # between SIGTERM and SIGKILL
MEETING_S = 900  # machines of a job start minutes apart, and each installs what the job needs


@dataclass(frozen=True)
class Machines:
    """The machines whose processes train together; each of them starts its own.

    Attributes:
        count: how many.
        rank: of this one, from 0.
        address: name of the first one, where all meet.
        port: of the first one.
    """

    count: int = 1
    rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0


def run_together(command: Sequence[str], processes: int, machines: Machines = Machines()) -> None:
    """Run a Python command in several processes that train together; the first one has the terminal.

    Args:
        command: script and arguments.
        processes: how many on this machine.
        machines: all of them.

    Raises:
        RunError: a process other than the first failed; with the end of what it said.
        SystemExit: the first one failed, or all were told to stop.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(available_cores() // processes, 1)))
    logs = Path(tempfile.mkdtemp(prefix="graft-"))
    try:
        elastic_launch(_launch_config(processes, machines, logs), sys.executable)(*command)
    except ChildFailedError as error:
        leader = error.failures.get(0)
        if leader is not None and leader.exitcode > 0:
            raise SystemExit(leader.exitcode) from None
        rank, failure = error.get_first_failure()
        raise RunError(
            f"process {rank} of {processes * machines.count} ended with code {failure.exitcode}: "
            f"{_said(logs, failure.local_rank)}"
        ) from None
    except SignalException as stopped:
        say("stopped; the same command with the same run_dir goes on from here")
        raise SystemExit(128 + stopped.sigval) from None
    finally:
        shutil.rmtree(logs, ignore_errors=True)


def _launch_config(processes: int, machines: Machines, logs: Path) -> LaunchConfig:
    """How torch starts the processes of this machine, and where those write that do not have the terminal."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    alone = machines.count == 1
    return LaunchConfig(
        min_nodes=machines.count,
        max_nodes=machines.count,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex if alone else "graft",
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint=f"{machines.address}:{machines.port}",
        rdzv_configs={} if alone else {"rank": machines.rank, "timeout": MEETING_S},
        local_addr="127.0.0.1" if alone else None,
        max_restarts=0,
        shutdown_timeout=GRACE_S,
        logs_specs=DefaultLogsSpecs(str(logs), redirects=dict.fromkeys(range(1, processes), Std.ALL)),
    )


def _said(logs: Path, local_rank: int) -> str:
    """The last line that a process of this machine wrote to stderr."""
    found = sorted(logs.glob(f"**/{local_rank}/stderr.log"))
    lines = found[-1].read_text(errors="replace").strip().splitlines() if found else []
    return lines[-1] if lines else "it said nothing"
