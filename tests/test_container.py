"""The container's side of a job: what the client composed is what runs there, and a failure says why."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from graft.config import Config, flatten
from graft.errors import ConfigError, DataError
from graft.launcher.container import Container, job_config, read_container, run_job
from graft.launcher.job import JOB_FILE, Entry, read_job, write_job
from graft.launcher.packing import make_job
from graft.launcher.source import pack_source
from graft.launcher.torchrun import Machines
from tests.composing import CONF, composed

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
CHANNELS = {"SM_CHANNEL_PHOTOS": "/opt/ml/input/data/photos", "SM_CHANNEL_WEIGHTS": "/opt/ml/input/data/weights"}
HERE = Container(Path("/opt/ml"), Path("/tmp/graft-cache"), {}, Machines())
# What is not the same on both sides, besides launcher.*: the places.
PLACES = {"run_dir", "features.cache_dir", "data.root"}
ODD = {
    "a dot and a slash": ("model.weights=s3://bucket/re.s.net-50.v2.pth", "model.weights", "WEIGHTS"),
    "quotes": ("""data.hint='it\\'s "here"'""", "data.hint", """it's "here\""""),
    "a list": ("model.mean=[0.1,0.2,0.3]", "model.mean", [0.1, 0.2, 0.3]),
    "a list of texts": (
        """search.space=['optim.lr=interval(1e-4, 1e-1)','model.hidden=choice(256, 1024)']""",
        "search.space",
        ["optim.lr=interval(1e-4, 1e-1)", "model.hidden=choice(256, 1024)"],
    ),
    "unicode": ("data.hint='Fotos für Ångström, 犬'", "data.hint", "Fotos für Ångström, 犬"),
    "a line break": ('data.hint="one\ntwo: three # four"', "data.hint", "one\ntwo: three # four"),
    "longer than a hyperparameter may be": (f"data.hint={'x' * 5000}", "data.hint", "x" * 5000),
    "null": ("trainer.patience=null", "trainer.patience", None),
    "a word that YAML takes for something else": ("data.hint='no'", "data.hint", "no"),
    "a small number": ("optim.lr=1e-7", "optim.lr", 1e-7),
}


def travelled(config: Config, folder: Path) -> Config:
    """The configuration as the container composes it, out of the source archive that is sent."""
    with tarfile.open(fileobj=io.BytesIO(pack_source(make_job(config, Entry.train)))) as archive:
        archive.extract(JOB_FILE, folder, filter="data")
    return job_config(read_job(folder / JOB_FILE), HERE, CHANNELS)


def shared(config: Config, *places: str) -> dict[str, object]:
    """What must be the same on both sides."""
    return {k: v for k, v in flatten(config).items() if k not in {*PLACES, *places} and not k.startswith("launcher.")}


@pytest.mark.parametrize("experiment", [None, *EXPERIMENTS])
def test_the_container_composes_what_the_client_did(experiment: str | None, tmp_path: Path) -> None:
    chosen = (f"experiment={experiment}",) if experiment else ()
    config = composed("trainer=sagemaker_cpu", "data.root=s3://bucket/dogs", "run_dir=runs/x", *chosen)
    there = travelled(config, tmp_path)
    assert shared(there) == shared(config)
    assert there.launcher.kind.name == "local"
    assert {key: flatten(there)[key] for key in PLACES} == {
        "run_dir": "/opt/ml/checkpoints/run",
        "features.cache_dir": "/tmp/graft-cache",
        "data.root": "/opt/ml/input/data/photos",
    }


@pytest.mark.parametrize("name", ODD)
def test_no_override_is_lost_on_the_way(name: str, tmp_path: Path) -> None:
    override, key, value = ODD[name]
    config = composed("trainer=sagemaker_cpu", "data=folder", "data.root=s3://bucket/dogs", "run_dir=x", override)
    there = travelled(config, tmp_path)
    if value == "WEIGHTS":
        assert there.model.weights == "/opt/ml/input/data/weights/re.s.net-50.v2.pth"
        assert shared(there, key) == shared(config, key)
    else:
        assert flatten(there)[key] == value
        assert shared(there) == shared(config)


def test_hyperparameters_of_a_trial_win_and_those_of_the_toolkit_are_left_out() -> None:
    job = make_job(composed("data=folder", "data.root=s3://b/dogs", "run_dir=x"), Entry.train)
    given = {
        "optim__lr": "0.0031",
        "data__batch_size": "64",
        "model__unfreeze": "layer4",
        "sagemaker_program": '"launcher_entry.py"',
        "_tuning_objective_metric": "valid/loss",
    }
    config = job_config(job, Container(Path("/opt/ml"), Path("/tmp"), given, Machines()), {})
    assert (config.optim.lr, config.data.batch_size, config.model.unfreeze) == (0.0031, 64, "layer4")


def test_a_hyperparameter_that_is_no_key_is_refused() -> None:
    job = make_job(composed("data=folder", "data.root=s3://b/dogs", "run_dir=x"), Entry.train)
    with pytest.raises(ConfigError, match=r"^optim.lrr is not a key of the configuration"):
        job_config(job, Container(Path("/opt/ml"), Path("/tmp"), {"optim__lrr": "1"}, Machines()), {})


def provide(base: Path, host: str = "algo-1") -> None:
    """The files of a job on two machines."""
    folder = base / "input" / "config"
    folder.mkdir(parents=True)
    (folder / "hyperparameters.json").write_text("{}")
    resources = {"current_host": host, "hosts": ["algo-2", "algo-1"], "network_interface_name": "eth1"}
    (folder / "resourceconfig.json").write_text(json.dumps(resources))


def test_the_first_machine_by_name_leads(tmp_path: Path) -> None:
    provide(tmp_path, host="algo-2")
    container = read_container({"SAGEMAKER_BASE_DIR": str(tmp_path), "TMPDIR": "/scratch", "MASTER_PORT": "29500"})
    assert container.machines == Machines(count=2, rank=1, address="algo-1", port=29500)
    assert (container.scratch, container.interface) == (Path("/scratch/graft-cache"), "eth1")
    job = make_job(composed("data=folder", "data.root=s3://b/dogs", "run_dir=x"), Entry.train)
    config = job_config(job, container, {})
    assert config.trainer.num_nodes == 2
    assert config.run_dir == f"{tmp_path}/checkpoints/run"


@pytest.fixture
def job_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    provide(tmp_path)
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    job = make_job(composed("data=folder", "data.root=s3://b/dogs", "run_dir=x"), Entry.train, ("seed=3",))
    (tmp_path / JOB_FILE).write_text(write_job(job))
    return tmp_path


def test_metrics_are_told_in_lines_that_the_service_reads(job_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def train(config: Config, overrides: tuple[str, ...], model: Path) -> dict[str, float]:
        assert (overrides, model) == (("seed=3",), job_folder / "model")
        return {"valid/loss": 0.25, "valid/accuracy": 0.5, "time/fit_s": 3.0}

    run_job(job_folder, {Entry.train: train})
    assert capfd.readouterr().out == "graft valid/loss=0.250000;\ngraft valid/accuracy=0.500000;\n"


@pytest.mark.parametrize(
    ("error", "code", "first"),
    [
        (DataError("data.root=/x has no train/"), 2, "data.root=/x has no train/"),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero"),
    ],
)
def test_a_failure_is_written_with_its_traceback(job_folder: Path, error: Exception, code: int, first: str) -> None:
    def train(config: Config, overrides: tuple[str, ...], model: Path) -> dict[str, float]:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_job(job_folder, {Entry.train: train})
    assert stopped.value.code == code
    lines = (job_folder / "output" / "failure").read_text().splitlines()
    assert lines[0] == first
    assert lines[2] == "Traceback (most recent call last):"
    assert "in train" in "\n".join(lines)


def test_what_stops_a_job_is_no_failure_of_it(job_folder: Path) -> None:
    def train(config: Config, overrides: tuple[str, ...], model: Path) -> dict[str, float]:
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        run_job(job_folder, {Entry.train: train})
    assert not (job_folder / "output" / "failure").exists()
