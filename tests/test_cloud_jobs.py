"""Commands with trainer=sagemaker_* on the local AWS, whose jobs really run: a run, a search, a sweep."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest

from graft.artifacts import read_manifest
from graft.launcher import calls
from graft.launcher.ticket import Ticket, read_ticket
from serve.packing import pack
from tests.aws.client import HERE, IMAGE, send_photos
from tests.aws.server import BUCKET, LocalAws, running_aws
from tests.conftest import TOOLKIT
from tests.pictures import draw_folder
from tests.s3server import CREDENTIALS, forget_account
from tests.training import TINY, start

pytestmark = [pytest.mark.toolkit, pytest.mark.slow]


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    with running_aws(tmp_path_factory.mktemp("aws"), TOOLKIT) as running:
        yield running


@pytest.fixture(scope="module")
def photos(aws: LocalAws, tmp_path_factory: pytest.TempPathFactory) -> str:
    return send_photos(aws, draw_folder(tmp_path_factory.mktemp("photos") / "drawn"))


@pytest.fixture
def account(aws: LocalAws, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_account(monkeypatch)
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": aws.url}.items():
        monkeypatch.setenv(name, value)
    calls.client.cache_clear()


def command(tmp_path: Path, photos: str, *more: str) -> list[str]:
    places = (f"run_dir={tmp_path / 'run'}", f"features.cache_dir={tmp_path / 'cache'}", f"data.root={photos}")
    named = (f"launcher.role={HERE.role}", f"launcher.bucket={BUCKET}", f"launcher.image={IMAGE}")
    return ["trainer=sagemaker_cpu", *TINY, *places, *named, *more]


@pytest.mark.usefixtures("account")
def test_one_word_moves_a_run_to_the_cloud(tmp_path: Path, photos: str) -> None:
    process = start(command(tmp_path, photos))
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "plan: 1 training job, 1 x ml.c7i.2xlarge, on demand, in us-east-1" in err
    assert "graft valid/loss=" in err
    assert "billed: " in err
    assert f"graft.load('{tmp_path / 'run'}/bundle')" in out
    assert "HYDRA" not in out
    run = tmp_path / "run"
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    assert (run / "bundle" / "model.safetensors").exists()
    assert "; billed: " in (run / "report.html").read_text()
    assert f"root: {photos}" in (run / "config.yaml").read_text()
    # Not where the job's machine had them: int8 is calibrated on them here.
    assert read_manifest(run / "bundle").data["root"] == photos
    pack([f"run_dir={run}", "serve.precision=int8", "serve.int8_photos=8", "serve.int8_margin=100"])
    assert (run / "model.tar.gz").exists()


@pytest.mark.usefixtures("account")
def test_a_tuning_job_leaves_what_a_search_leaves(tmp_path: Path, photos: str) -> None:
    space = ["search=given", "optim.lr=tag(log, interval(1e-3, 1e-1))", "model.hidden=choice(16, 32)"]
    search = ["search.backend=tuning_job", "search.sampler=random", "search.trials=2", "search.early_stopping=false"]
    process = start(command(tmp_path, photos, *space, *search, "launcher.max_parallel=2"), script="tune.py")
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    run = tmp_path / "run"
    study = json.loads((run / "study.json").read_text())
    assert [trial["number"] for trial in study["trials"]] == [1, 2]
    assert {trial["state"] for trial in study["trials"]} == {"ok"}
    best = study["trials"][study["best"] - 1]
    assert best["value"] == min(trial["value"] for trial in study["trials"])
    metrics = json.loads((run / "best" / "metrics.json").read_text())
    assert metrics["valid/loss"] == pytest.approx(best["value"], abs=1e-6)
    assert "test/loss" not in metrics
    kept = (run / "best" / "config.yaml").read_text()
    assert f"root: {photos}" in kept
    assert f"hidden: {best['params']['model.hidden']}" in kept
    assert f"optim.lr={best['params']['optim.lr']}" in (run / "best.yaml").read_text()
    assert "trials: 2, 2 ok" in out
    for page in (run / "report.html", run / "best" / "report.html"):
        assert "; billed: " in page.read_text()


def most_at_a_time(tickets: Sequence[Ticket | None]) -> int:
    """How many of these jobs were in progress together."""
    service = calls.client("sagemaker", "us-east-1")
    jobs = [service.describe_training_job(TrainingJobName=ticket.name) for ticket in tickets if ticket]
    spans: list[tuple[datetime, datetime]] = [(job["CreationTime"], job["TrainingEndTime"]) for job in jobs]
    return max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)


@pytest.mark.usefixtures("account")
def test_a_sweep_runs_a_job_for_each_combination(aws: LocalAws, tmp_path: Path, photos: str) -> None:
    sweep = ["optim.lr=0.003,0.01,0.03", "launcher.max_parallel=2", "trainer.max_epochs=1"]
    process = start(command(tmp_path, photos, *sweep), "-m")
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert "runs of " in out
    assert most_at_a_time([read_ticket(tmp_path / "run" / str(number)) for number in range(3)]) == 2
    for number, lr in enumerate(("0.003", "0.01", "0.03")):
        run = tmp_path / "run" / str(number)
        assert json.loads((run / "run.json").read_text())["state"] == "finished"
        assert f"optim.lr={lr}" in json.loads((run / "overrides.json").read_text())
        assert "test/loss" not in json.loads((run / "metrics.json").read_text())


@pytest.mark.usefixtures("account")
def test_a_whole_search_is_one_job(tmp_path: Path, photos: str) -> None:
    space = ["search=given", "optim.lr=choice(0.003, 0.03)", "search.trials=3", "search.repeats=0"]
    process = start(command(tmp_path, photos, *space, "trainer.max_epochs=1"), script="tune.py")
    _, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert "search.backend=tuning_job $" in err
    assert "trials: 3, 3 ok" in err  # the job's own summary, in its log
    run = tmp_path / "run"
    assert {trial["state"] for trial in json.loads((run / "study.json").read_text())["trials"]} == {"ok"}
    assert read_manifest(run / "best" / "bundle").data["root"] == photos
    assert f"next: python train.py overrides_from={run}/best.yaml" in err
    assert (run / "best.yaml").exists()
    for page in (run / "report.html", run / "best" / "report.html"):
        assert "; billed: " in page.read_text()
