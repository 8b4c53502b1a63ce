"""What a job needs: found in the configuration or the environment, or asked for all at once."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from graft.data.__main__ import main as data
from graft.errors import ConfigError
from graft.launcher.__main__ import main
from graft.launcher.account import Account, found_region, require
from graft.launcher.images import find_image
from tests.composing import ROOT, composed
from tests.s3server import client, forget_account, new_bucket, running_server, use_server
from tests.test_archive import zipped


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_account(monkeypatch)
    monkeypatch.delenv("AWS_REGION", raising=False)


def test_one_message_lists_all_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        require(composed("trainer=sagemaker_gpu"))
    assert str(caught.value).splitlines() == [
        "launcher=sagemaker needs:",
        "  launcher.role=ARN, the IAM role that jobs act under: aws iam get-role --role-name graft --query Role.Arn "
        "(docs/sagemaker.md makes one)",
        "  launcher.region=REGION: aws configure set region us-east-1",
        "  launcher.bucket=BUCKET, for source, checkpoints and results: aws s3 mb s3://BUCKET",
        "  data.root=s3://BUCKET/photos (now data/dogImages): python -m graft.data fetch "
        "s3://udacity-aind/dog-project/dogImages.zip data/dogImages --bytes 1132023110 --region us-west-1 && "
        "python -m graft.data upload data/dogImages s3://BUCKET/photos",
        "launcher.plan=true needs none of it: it sends nothing and says what would be created and its price",
    ]


def test_photos_that_are_here_are_only_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "dogImages").mkdir(parents=True)
    assert told_of_photos().endswith("): python -m graft.data upload data/dogImages s3://BUCKET/photos")
    assert ": python -m graft.data upload 'my photos' s3://" in told_of_photos("data=folder", "data.root='my photos'")


def told_of_photos(*overrides: str) -> str:
    """The line on photos that a job lacks."""
    with pytest.raises(ConfigError) as caught:
        require(composed("trainer=sagemaker_gpu", *overrides))
    (line,) = (line for line in str(caught.value).splitlines() if line.startswith("  data.root="))
    return line


def test_the_commands_that_are_told_bring_the_photos_to_s3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = {f"{split}/Akita/1.jpg": split.encode() for split in ("train", "valid", "test")}
    content = zipped({f"dogImages/{name}": photo for name, photo in photos.items()})
    set_of = ["data.archive=s3://dogs/all.zip", f"data.archive_bytes={len(content)}", "launcher.bucket=mine"]
    line = told_of_photos(*set_of)
    with running_server() as url:
        use_server(monkeypatch, url)
        s3 = client(url)
        for bucket in ("dogs", "mine"):
            new_bucket(url, bucket)
        s3.put_object(Bucket="dogs", Key="all.zip", Body=content, ACL="public-read")
        for command in line.partition("): ")[2].split(" && "):
            python, dash_m, module, *argv = shlex.split(command)
            assert (python, dash_m, module) == ("python", "-m", "graft.data")
            assert data(argv) == 0
        names = [entry["Key"] for entry in s3.list_objects_v2(Bucket="mine")["Contents"]]
    assert names == sorted(f"photos/{name}" for name in photos)
    assert {name: (tmp_path / "data" / "dogImages" / name).read_bytes() for name in photos} == photos
    out = capsys.readouterr().out
    assert "data/dogImages is there\nnext: python train.py data=folder data.root=data/dogImages\n" in out
    assert "s3://mine/photos: 3 sent" in out


def test_only_what_is_missing_is_listed() -> None:
    config = composed("trainer=sagemaker_gpu", "data=demo", "launcher.bucket=mine", "launcher.region=eu-west-1")
    with pytest.raises(ConfigError) as caught:
        require(config)
    assert str(caught.value).count("\n") == 2
    require(composed("trainer=sagemaker_gpu", "data=demo", "launcher.bucket=b", "launcher.region=r", "launcher.role=r"))


def test_weights_that_are_not_there_are_told_before_a_job_is_billed(tmp_path: Path) -> None:
    weights = tmp_path / "resnet50.pth"
    config = composed("trainer=sagemaker_gpu", "data=demo", f"model.weights={weights}")
    with pytest.raises(
        ConfigError, match=rf"model\.weights=FILE \(now {re.escape(str(weights))}, which is not there\)"
    ):
        require(config)
    weights.write_bytes(b"")
    with pytest.raises(ConfigError) as caught:
        require(config)
    assert "model.weights" not in str(caught.value)


@pytest.mark.parametrize("backend", ["one_job", "tuning_job"])
def test_a_job_keeps_its_study_itself_and_no_password_is_shown(backend: str) -> None:
    storage = "search.storage='postgresql://user:PASSWORD@host/db'"
    config = composed("trainer=sagemaker_gpu", "data=demo", storage, f"search.backend={backend}")
    with pytest.raises(ConfigError, match=r"search\.storage=null \(now a URL\)") as caught:
        require(config)
    assert "PASSWORD" not in str(caught.value)


def test_the_region_of_the_environment_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = composed("trainer=sagemaker_gpu")
    assert found_region(config) is None
    profile = tmp_path / "config"
    profile.write_text("[default]\nregion = eu-north-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(profile))
    assert found_region(config) == "eu-north-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    assert found_region(config) == "us-west-2"
    assert found_region(composed("trainer=sagemaker_gpu", "launcher.region=eu-west-1")) == "eu-west-1"


def test_places_are_below_the_prefix() -> None:
    account = Account("role", "us-east-1", "mine", "team/graft", "image")
    assert account.uri("jobs", "one") == "s3://mine/team/graft/jobs/one"
    assert Account("role", "us-east-1", "mine", "", "image").uri("jobs") == "s3://mine/jobs"


def test_the_image_that_is_given_is_taken() -> None:
    assert find_image(composed("trainer=sagemaker_gpu", "launcher.image=mine:1"), "us-east-1") == "mine:1"


@pytest.mark.slow
def test_the_sdk_knows_a_container_for_each_kind_of_machine() -> None:
    gpu = find_image(composed("trainer=sagemaker_gpu"), "eu-central-1")
    cpu = find_image(composed("trainer=sagemaker_cpu"), "eu-central-1")
    pattern = r"763104351884\.dkr\.ecr\.eu-central-1\.amazonaws\.com/pytorch-training:\d+\.\d+(\.\d+)?-{}-py3\d+"
    assert re.fullmatch(pattern.format("gpu"), gpu)
    assert re.fullmatch(pattern.format("cpu"), cpu)


def test_the_policies_of_the_document_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "sagemaker.md").read_text()
    names = re.search(r'export NAMES="(.*)"', text)
    assert names is not None
    lines = re.findall(r"^python -m graft\.launcher (policy .*) > \w+\.json$", text, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        main(shlex.split(line.replace("$NAMES", names[1])))
    out = capsys.readouterr().out
    assert out.count('"Version": "2012-10-17"') == 3
    assert "arn:aws:s3:::BUCKET/photos/*" in out


def test_the_plans_of_the_document_are_made(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "sagemaker.md").read_text()
    lines = re.findall(r"^python (\w+\.py .*launcher\.plan=true.*)$", text, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        script, *overrides = line.split()
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        command = [sys.executable, str(ROOT / script), *overrides]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("plan: 1 training job")


def test_a_sweep_of_jobs_is_not_run_by_several_processes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    argv = ["-m", "trainer=sagemaker_gpu", "launcher.plan=true", "optim.lr=0.001,0.003", *parallel]
    command = [sys.executable, str(ROOT / "train.py"), *argv]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "plan:" not in done.stdout
    told = {line for line in done.stderr.splitlines() if line.startswith("error: ")}
    assert told == {
        "error: hydra/launcher=joblib: its processes would submit jobs without counting each other's, beyond "
        "launcher.max_parallel and budget.usd; accepted is basic: the jobs run beside each other anyway, "
        "launcher.max_parallel at a time"
    }
    assert "Traceback" not in done.stderr


def test_a_sweep_can_be_planned(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    argv = ["-m", "trainer=sagemaker_gpu", "launcher.plan=true", "optim.lr=0.001,0.003"]
    command = [sys.executable, str(ROOT / "train.py"), *argv]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("plan: 1 training job") == 2
