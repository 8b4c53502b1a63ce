"""Inside a SageMaker training job: from graft_job.yaml and the service's files to the configuration that runs there.

SageMaker's toolkit starts `launcher_entry.py`, which hands what trains and searches to `run_job`. The toolkit also
passes hyperparameters as `--key value`; they are read from its file instead, and its command line is ignored.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from graft.command import value_of
from graft.config import OBJECTIVES, Config, changed
from graft.errors import GraftError
from graft.launcher.job import (
    BASE,
    CACHE_DIR,
    JOB_FILE,
    Entry,
    Job,
    is_searched,
    key_of_hyperparameter,
    metric_line,
    read_job,
)
from graft.launcher.torchrun import Machines, run_together
from graft.storage import write_text

PORT = 7777  # the toolkit's own port for torchrun; MASTER_PORT names another one

# What trains or searches: is given the configuration, the overrides for the record and the folder of the model to
# deploy; returns the metrics, empty in a process that is not the leader of its run.
Work = Callable[[Config, tuple[str, ...], Path], Mapping[str, float]]


@dataclass(frozen=True)
class Container:
    """A job's files and machines, as the service tells them.

    Attributes:
        base: /opt/ml; SAGEMAKER_BASE_DIR moves it, as it does for the toolkit.
        scratch: folder for what need not outlive the machine.
        hyperparameters: name -> text.
        machines: of the job, the first of which leads.
        interface: of the network between them.
    """

    base: Path
    scratch: Path
    hyperparameters: dict[str, str]
    machines: Machines
    interface: str = "eth0"

    @property
    def failure(self) -> Path:
        """What the service tells as the reason of a failure: its first 1,024 characters."""
        return self.base / "output" / "failure"

    @property
    def model(self) -> Path:
        """What the service packs as model.tar.gz."""
        return self.base / "model"


def read_container(environment: Mapping[str, str] = os.environ) -> Container:
    """What the service says of the job that this process runs in."""
    base = Path(environment.get("SAGEMAKER_BASE_DIR", str(BASE)))
    settings = base / "input" / "config"
    resources = json.loads((settings / "resourceconfig.json").read_text())
    hosts = sorted(resources["hosts"])
    return Container(
        base=base,
        scratch=Path(environment.get("TMPDIR", "/tmp")) / CACHE_DIR.name,
        hyperparameters=json.loads((settings / "hyperparameters.json").read_text()),
        machines=Machines(
            count=len(hosts),
            rank=hosts.index(resources["current_host"]),
            address=hosts[0],
            port=int(environment.get("MASTER_PORT", PORT)),
        ),
        interface=resources["network_interface_name"],
    )


def job_config(job: Job, container: Container, environment: Mapping[str, str] = os.environ) -> Config:
    """The configuration of the job: what the client composed, at this container's places, with the trial's values.

    Raises:
        ConfigError: a hyperparameter is no key, or has a value that the key does not accept.
    """
    searched = {
        key: value_of(key, text)
        for key, text in (
            (key_of_hyperparameter(name), text) for name, text in container.hyperparameters.items() if is_searched(name)
        )
    }
    places = {
        "run_dir": _moved(job.values["run_dir"], container),
        "trainer.num_nodes": container.machines.count,
        "features.cache_dir": str(container.scratch),
    }
    return changed(Config(), {**job.placed(environment), **places, **searched})


def run_job(folder: Path, work: Mapping[Entry, Work]) -> None:
    """Run the job that `folder` describes, in this process or, where it takes several, through torchrun.

    Args:
        folder: with graft_job.yaml.
        work: what trains, and what searches.

    Raises:
        SystemExit: it failed; the reason is on stderr and in the job's failure file.
    """
    container = read_container()
    with _failure_told(container.failure):
        job = read_job(folder / JOB_FILE)
        config = job_config(job, container)
        if config.processes > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
            for library in ("NCCL", "GLOO"):  # the toolkit sets it for those that it starts itself
                os.environ.setdefault(f"{library}_SOCKET_IFNAME", container.interface)
            run_together(sys.argv[:1], config.trainer.devices, container.machines)
            return
        tell(work[job.entry](config, job.overrides, container.model))


def tell(metrics: Mapping[str, Any]) -> None:
    """Print what the service's metric definitions look for, each line in one write.

    The toolkit's environment is unbuffered, where `print(a, b)` arrives as several lines.
    """
    for name in OBJECTIVES:
        if name in metrics:
            sys.stdout.write(metric_line(name, float(metrics[name])))
    sys.stdout.flush()


@contextmanager
def _failure_told(failure: Path) -> Iterator[None]:
    """What ends a job goes into its failure file: the sentence first, for that is what the service shows."""
    try:
        yield
    except Exception as error:
        sentence = str(error) if isinstance(error, GraftError) else f"{type(error).__name__}: {error}"
        if not failure.exists():  # several processes may fail, the first one knows why
            write_text(failure, f"{sentence}\n\n{traceback.format_exc()}")
        print(f"error: {sentence}" if isinstance(error, GraftError) else traceback.format_exc(), file=sys.stderr)
        sys.exit(2 if isinstance(error, GraftError) else 1)


def _moved(location: str, container: Container) -> str:
    """A place below /opt/ml, below this container's."""
    path = PurePosixPath(location)
    return str(container.base / path.relative_to(BASE)) if path.is_relative_to(BASE) else location
