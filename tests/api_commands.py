"""Commands that ask AWS, each with what a good end comes to: a run, a search, their end, an upload, an endpoint."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from graft.command import Spread
from graft.config import Config, changed
from graft.data.__main__ import main as data
from graft.launcher.__main__ import main as launcher
from graft.launcher.cloud import Work, run_in_cloud, tune_in_cloud
from graft.launcher.job import Entry
from graft.launcher.prices import renew_prices
from graft.launcher.ticket import read_ticket
from graft.terminal import plain_errors
from serve.__main__ import main as serve
from serve.answers import LOGITS
from tests.aws.client import HERE, IMAGE
from tests.aws.hosting import Endpoint
from tests.aws.server import BUCKET, LocalAws
from tests.composing import composed
from tests.faults import Faults
from tests.test_cloud import METRICS
from tests.test_endpoint import ACCOUNT_KEYS, archive_of, leftovers

PHOTOS = "photos-of-faults"
LINE = "graft valid/loss=0.500000;"
PRODUCT = {
    "product": {"attributes": {"instanceName": "ml.m5.large", "vCpu": "2"}},
    "terms": {"OnDemand": {"a": {"priceDimensions": {"b": {"unit": "Hrs", "pricePerUnit": {"USD": "0.115"}}}}}},
}


@dataclass(frozen=True)
class Stage:
    """What a test has.

    Attributes:
        aws: the account.
        faults: what befalls the calls of the person whose it is.
        job: name that the next job gets.
        endpoint: likewise.
        run_dir: of the run.
        hold: a file; jobs go on while it is there.
        packed: a run that was packed, with photos beside it.
    """

    aws: LocalAws
    faults: Faults
    job: str
    endpoint: str
    run_dir: Path
    hold: Path
    packed: Path

    def config(self, **more: Any) -> Config:
        """Of a run in the account."""
        places = {"run_dir": str(self.run_dir), "features.cache_dir": str(self.run_dir.parent / "cache")}
        return changed(account(), places | {key.replace("__", "."): value for key, value in more.items()})

    def left(self) -> list[str]:
        """Names of what there is of the endpoint."""
        return [name for name in leftovers(self.aws) if self.endpoint in name]

    def is_running(self) -> bool:
        """Whether the job, or one of its trials, is."""
        sagemaker = self.aws.sagemaker
        ends = {name: job.finished for name, job in sagemaker.training_jobs.items()}
        ends |= {name: search.finished for name, search in sagemaker.tuning_jobs.items()}
        return any(end is None and name.startswith(self.job) for name, end in ends.items())

    def unmentioned(self, said: str) -> list[str]:
        """What is left in the account, of which a person was told neither the name nor the command that ends it."""
        running = [self.job] if self.is_running() else []
        parts = [] if f"python -m serve delete endpoint={self.endpoint}`" in said else self.left()
        return [name for name in (*running, *parts) if name not in said]


@cache
def account() -> Config:
    """What all tests share, composed once."""
    named = (f"launcher.role={HERE.role}", f"launcher.bucket={BUCKET}", f"launcher.image={IMAGE}")
    place = ("data=folder", f"data.root=s3://{BUCKET}/{PHOTOS}", "launcher.region=us-east-1")
    return composed("trainer=sagemaker_cpu", *place, *named)


def program(folder: Path) -> Path:
    """Stands for the toolkit's `train`: tells a metric, leaves a run, and waits while the file `hold` is there."""
    run = folder / "run"
    run.mkdir()
    (run / "metrics.json").write_text(json.dumps(METRICS))
    (run / "run.json").write_text('{"id": "1", "state": "finished"}')
    path = folder / "train"
    left, hold = shlex.quote(str(run)), shlex.quote(str(folder / "hold"))
    copies = f"cp -r {left} checkpoints/ && cp -r {left} output/data/"
    path.write_text(f"#!/bin/sh\necho '{LINE}'\n{copies}\nwhile [ -e {hold} ]; do sleep 0.05; done\n")
    path.chmod(0o755)
    return path


@contextmanager
def no_container(*_: Any) -> Iterator[int]:
    """In place of a server, which would take seconds to start; see `parrot`."""
    yield 0


def parrot(endpoint: Endpoint, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes, Mapping[str, str]]:
    """What the model of an endpoint says of its parity samples, read from beside it; of other photos, class_0."""
    content: Any = {"predictions": [{"label": "class_0", "index": 0, "probability": 1.0}]}
    content |= {"unsure": False, "not_one_of_these": False}
    if headers["Accept"] == LOGITS:
        place = endpoint.folder / "model" / "parity"
        number = [path.read_bytes() for path in sorted(place.glob("*.image"))].index(body)
        content = [json.loads((place / "logits.json").read_text())[number]]
    return 200, json.dumps(content).encode(), {"Content-Type": "application/json"}


def ended(run: Callable[[], object]) -> int:
    """The code that a command ends with."""
    try:
        with plain_errors():
            run()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@dataclass(frozen=True)
class Command:
    """A command of graft's.

    Attributes:
        run: it.
        check: asserts what a good end comes to, from what it wrote to stdout and stderr.
        before: what has to be there.
    """

    run: Callable[[Stage], object]
    check: Callable[[Stage, str, str], None]
    before: Callable[[Stage], object] = lambda stage: None


def train(stage: Stage) -> None:
    run_in_cloud(Work(stage.config()))


def check_train(stage: Stage, out: str, err: str) -> None:
    assert json.loads((stage.run_dir / "metrics.json").read_text()) == METRICS
    assert err.count(LINE) == 1
    ticket = read_ticket(stage.run_dir)
    assert ticket is not None
    assert (ticket.name, ticket.state) == (stage.job, "Completed")


def search(stage: Stage, **more: Any) -> Work:
    keys = {"search__backend": "tuning_job", "search__trials": 2, "search__early_stopping": False}
    config = stage.config(**keys, launcher__max_parallel=2, **more)
    return Work(config, Entry.tune, (), 2, {"optim.lr": Spread((), 0.01, 0.1)})


def check_search(stage: Stage, out: str, err: str) -> None:
    assert json.loads((stage.run_dir / "best" / "metrics.json").read_text()) == METRICS
    trials = [job for job in stage.aws.sagemaker.training_jobs.values() if job.tuning_job == stage.job]
    assert [trial.status for trial in trials] == ["Completed", "Completed"]


def start(stage: Stage) -> None:
    stage.hold.touch()
    run_in_cloud(Work(stage.config(launcher__wait=False)))


def start_search(stage: Stage) -> None:
    stage.hold.touch()
    run_in_cloud(search(stage, launcher__wait=False))


def check_stop(stage: Stage, out: str, err: str) -> None:
    assert f"{stage.job} is being stopped; billing ends within minutes" in err
    assert stage.aws.sagemaker.training_jobs[stage.job].stopping.is_set()


def check_stop_search(stage: Stage, out: str, err: str) -> None:
    assert f"{stage.job} is being stopped; billing ends within minutes" in err
    assert stage.aws.sagemaker.tuning_jobs[stage.job].stopping.is_set()


def upload(stage: Stage) -> None:
    sys.exit(data(["upload", str(stage.run_dir.parent / "photos"), f"s3://{BUCKET}/{stage.job}"]))


def before_upload(stage: Stage) -> None:
    (stage.run_dir.parent / "photos").mkdir()
    (stage.run_dir.parent / "photos" / "large.bin").write_bytes(bytes(9_000_000))  # sent in two parts


def check_upload(stage: Stage, out: str, err: str) -> None:
    assert "1 sent (9.0 MB), 0 unchanged, all verified by size and MD5" in out


def prices(stage: Stage) -> None:
    stage.faults.reply(("pricing", "GetProducts"), {"PriceList": [json.dumps(PRODUCT)]})
    found = renew_prices("eu-central-1", stage.run_dir)
    print(found.of("ml.m5.large", "eu-central-1"))


def check_prices(stage: Stage, out: str, err: str) -> None:
    assert out == "0.115\n"


def deploy(stage: Stage) -> None:
    serve(["deploy", f"endpoint={stage.endpoint}", archive_of(stage.packed), *ACCOUNT_KEYS])


def check_deploy(stage: Stage, out: str, err: str) -> None:
    assert f"endpoint {stage.endpoint} is in service in us-east-1 and reproduces the parity samples" in out


def delete(stage: Stage) -> None:
    serve(["delete", f"endpoint={stage.endpoint}"])


def check_delete(stage: Stage, out: str, err: str) -> None:
    assert "nothing of it is billed any more" in out
    assert stage.left() == []


def check_list(stage: Stage, out: str, err: str) -> None:
    row = next(line for line in out.splitlines() if stage.endpoint in line)
    assert "InService" in row


def predict(stage: Stage) -> None:
    photo = stage.packed.parent / "photos" / "test" / "class_0" / "000.jpg"
    serve(["predict", str(photo), f"endpoint={stage.endpoint}", "--json"])


def check_predict(stage: Stage, out: str, err: str) -> None:
    assert json.loads(out)["predictions"][0]["label"] == "class_0"


COMMANDS = {
    "train": Command(train, check_train),
    "search": Command(lambda stage: tune_in_cloud(search(stage)), check_search),
    "stop": Command(lambda stage: launcher(["stop", str(stage.run_dir)]), check_stop, start),
    "stop search": Command(lambda stage: launcher(["stop", str(stage.run_dir)]), check_stop_search, start_search),
    "upload": Command(upload, check_upload, before_upload),
    "prices": Command(prices, check_prices),
    "deploy": Command(deploy, check_deploy),
    "delete": Command(delete, check_delete, deploy),
    "list": Command(lambda stage: serve(["list"]), check_list, deploy),
    "predict": Command(predict, check_predict, deploy),
}
