"""What travels with a job: the same configuration, the code, nothing else; the same bytes for the same code."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from graft.artifacts import open_run
from graft.config import Config, LauncherConfig, changed, flatten, to_yaml
from graft.errors import ConfigError
from graft.launcher.account import Account
from graft.launcher.job import Entry, read_job, write_job
from graft.launcher.packing import channels_of, make_job
from graft.launcher.requests import Channel
from graft.launcher.source import pack_source, requirements
from tests.composing import CONF, composed

ACCOUNT = Account("arn:aws:iam::123456789012:role/graft", "us-east-1", "mine", "graft", "image:1")
EXPERIMENTS = [f"experiment={path.stem}" for path in sorted((CONF / "experiment").glob("*.yaml"))]
AWKWARD = [
    "model.weights='a.b/c d.pth'",
    "data.hint='with \"both\" kinds, a = b, and ${dollars'",
    "data.hint='Köter/狗/🐕'",
    f"data.hint='{'x' * 3000}'",
    "model.mean=[0.1,0.2,1e-7]",
    "optim.lr=3e-17",
    "search.space=['optim.lr=tag(log, interval(1e-4, 1e-1))','data.batch_size=choice(32, 64)']",
]
PLACES = {"run_dir", "features.cache_dir", "data.root"}


@pytest.mark.parametrize("override", [*EXPERIMENTS, *AWKWARD])
@pytest.mark.parametrize("trainer", ["sagemaker_gpu", "sagemaker_ddp"])
def test_the_container_composes_the_same_configuration(tmp_path: Path, trainer: str, override: str) -> None:
    config = composed(f"trainer={trainer}", "data.root=s3://b/p", override.replace("${", "$"))
    path = tmp_path / "graft_job.yaml"
    path.write_text(write_job(make_job(config, Entry.train)), encoding="utf-8")
    there = changed(Config(), read_job(path).placed({}))
    assert there.launcher == LauncherConfig()
    here, there_flat = flatten(config), flatten(there)
    differing = {key for key in here if here[key] != there_flat[key] and not key.startswith("launcher.")}
    assert differing == PLACES


def test_a_run_goes_on_with_a_larger_budget(tmp_path: Path) -> None:
    def in_container(*more: str) -> str:
        config = composed("trainer=sagemaker_gpu", "data=demo", *more)
        return to_yaml(changed(Config(), make_job(config, Entry.train).placed({})))

    for budget in ("budget.usd=1", "budget.usd=2", "budget.usd=null"):
        with pytest.raises(SystemExit), open_run(tmp_path / "run", in_container(budget), []):
            raise SystemExit(143)
    assert in_container("search.backend=tuning_job") == in_container()


def test_a_search_is_told_its_time_and_a_run_is_not() -> None:
    config = composed("trainer=sagemaker_gpu", "data=demo", "search.max_minutes=9")
    assert make_job(config, Entry.tune, max_minutes=4.5).values["search.max_minutes"] == 4.5
    assert make_job(config, Entry.train).values["search.max_minutes"] == 9


def test_a_trial_does_not_look_at_test() -> None:
    config = composed("trainer=sagemaker_gpu", "evaluate.test=true")
    job = make_job(config, Entry.tune, trial=True)
    assert job.entry is Entry.train
    assert job.values["evaluate.test"] is False
    assert job.values["run_dir"] == "/opt/ml/output/data/run"
    assert make_job(config, Entry.train).values["evaluate.test"] is True


def test_photos_and_weights_are_channels(tmp_path: Path) -> None:
    weights = tmp_path / "resnet50.pth"
    weights.write_bytes(b"weights")  # MD5 63f4f1e9b725370f459720575cd5f953
    config = composed("trainer=sagemaker_gpu", "data.root=s3://b/photos", f"model.weights={weights}")
    job = make_job(config, Entry.train)
    assert job.channels == {"data.root": "photos", "model.weights": "weights/resnet50.pth"}
    photos, file = channels_of(config, ACCOUNT)
    assert photos == Channel("photos", "s3://b/photos/", config.launcher.input_mode)
    assert file.uri == "s3://mine/graft/weights/63f4f1e9b725370f459720575cd5f953/resnet50.pth"


def test_drawn_photos_and_named_weights_need_no_channel() -> None:
    config = composed("trainer=sagemaker_gpu", "data=demo")
    assert make_job(config, Entry.train).channels == {}
    assert channels_of(config, ACCOUNT) == []


def checkout(root: Path) -> Path:
    """A small one, with things beside the code that must not travel."""
    files = {
        "train.py": "train", "tune.py": "tune", "launcher_entry.py": "entry", "constraints.txt": "torch==1",
        "pyproject.toml": '[project]\ndependencies = ["torch>=1", "rich"]\n',
        "src/graft/config.py": "config", "src/graft/__pycache__/config.pyc": "no", "serve/app.py": "app",
        "serve/page/index.html": "page", "conf/config.yaml": "yaml",
        ".env": "AWS_SECRET_ACCESS_KEY=no", "credentials": "no", "serve/.secret.py": "no", "serve/key.pem": "no",
        "runs/first/model.safetensors": "no", "data/photo.jpg": "no",
    }  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def contents(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {m.name: f.read() for m in archive.getmembers() if (f := archive.extractfile(m))}


def test_the_archive_holds_the_code_and_nothing_that_lies_beside_it(tmp_path: Path) -> None:
    job = make_job(composed("trainer=sagemaker_gpu", "data=demo"), Entry.train)
    found = contents(pack_source(job, checkout(tmp_path)))
    assert sorted(found) == [
        "conf/config.yaml",
        "constraints.txt",
        "graft_job.yaml",
        "launcher_entry.py",
        "requirements.txt",
        "serve/app.py",
        "serve/page/index.html",
        "src/graft/config.py",
        "train.py",
        "tune.py",
    ]
    assert found["requirements.txt"] == b"-c constraints.txt\ntorch>=1\nrich\n"
    assert found["graft_job.yaml"].decode() == write_job(job)


def test_no_password_travels(tmp_path: Path) -> None:
    storage = "search.storage='postgresql://user:PASSWORD@host/db'"
    job = make_job(composed("trainer=sagemaker_gpu", "data=demo", storage), Entry.tune, ("seed=1", storage))
    assert job.overrides == ("seed=1",)
    assert b"PASSWORD" not in contents(pack_source(job, checkout(tmp_path)))["graft_job.yaml"]


def test_the_same_code_gives_the_same_bytes(tmp_path: Path) -> None:
    job = make_job(composed("trainer=sagemaker_gpu", "data=demo"), Entry.train)
    first = pack_source(job, checkout(tmp_path / "a"))
    second = pack_source(job, checkout(tmp_path / "b"))
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        entries = archive.getmembers()
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    assert {(entry.mtime, entry.uid, entry.uname, entry.mode) for entry in entries} == {(0, 0, "", 0o644)}


def test_the_archive_of_this_checkout_is_small() -> None:
    data = pack_source(make_job(composed("trainer=sagemaker_gpu", "data=demo"), Entry.train))
    assert len(data) < 1_000_000
    assert {"src/graft/report/templates/page.html", "src/graft/launcher/prices.json"} <= set(contents(data))
    assert requirements().startswith("-c constraints.txt\ntorch>=")


def test_without_a_checkout_it_says_what_is_missing(tmp_path: Path) -> None:
    job = make_job(composed("trainer=sagemaker_gpu", "data=demo"), Entry.train)
    with pytest.raises(ConfigError, match=r"sends graft's code from its checkout, and .*train\.py is not there"):
        pack_source(job, tmp_path)
