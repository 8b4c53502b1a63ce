"""Requests, plan, price and policy of an endpoint: pure, and shown in tests/golden/endpoint.

`python -m tests.test_endpoint_requests` writes the golden files anew; read their difference before committing it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from graft.config import Config, Engine, ServeConfig, ServingPrecision
from graft.errors import ConfigError
from graft.launcher.policy import policies
from graft.launcher.prices import Machine, Prices
from graft.launcher.validation import problems
from serve.arguments import read_arguments
from serve.endpoint import deploy
from serve.endpoint_arguments import read_endpoint_arguments
from serve.endpoint_listing import Costing, in_all, of_endpoint
from serve.endpoint_plan import check_endpoint_budget, hours_of, make_endpoint_plan
from serve.endpoint_requests import (
    RUNTIME_KEYS,
    Deployment,
    changed_keys,
    check_container,
    environment_of,
    is_archive_of,
    steps_of,
)
from serve.endpoint_resources import _OPERATIONS
from serve.endpoint_role import ttl_role_requests
from tests.composing import ROOT
from tests.s3server import forget_account
from tests.test_policy import allowed
from tests.test_requests import ACCOUNT

GOLDEN = Path(__file__).with_name("golden") / "endpoint"
IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference:2.6-cpu-py312"
ID = "20261127-120000-abcd"
UNTIL = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)
PRICES = Prices("2026-09-27", "us-east-1", "a list", {"ml.m5.large": Machine(0.115, 2, 0)})


def deployment(name: str = "dogs", until: datetime | None = UNTIL, **serve: Any) -> Deployment:
    account = replace(ACCOUNT, image=IMAGE, tags=(*ACCOUNT.tags, ("deployment", ID)))
    return Deployment(name, ID, account, ServeConfig(**serve), "fp32", until)


def requests() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Name of the golden file: service, operation and request."""
    steps = {step.operation: (step.service, step.operation, step.request) for step in steps_of(deployment())}
    made = ttl_role_requests(deployment().account)
    return steps | {operation: ("iam", operation, request) for operation, request in made.items()}


@pytest.mark.parametrize("name", requests())
def test_a_request_is_the_one_on_record(name: str) -> None:
    service, operation, request = requests()[name]
    assert json.loads((GOLDEN / f"{name}.json").read_text()) == {f"{service}.{operation}": request}


@pytest.mark.parametrize("name", requests())
def test_a_request_passes_the_service_model(name: str) -> None:
    service, operation, request = requests()[name]
    assert list(problems(operation, request, service)) == []


def test_every_golden_file_is_of_a_request() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(requests())


def test_the_schedule_is_made_before_what_it_ends() -> None:
    operations = [step.operation for step in steps_of(deployment())]
    assert operations == ["CreateModel", "CreateEndpointConfig", "CreateSchedule", "CreateEndpoint"]
    assert "CreateSchedule" not in [step.operation for step in steps_of(deployment(until=None))]


@pytest.mark.parametrize(
    ("uri", "is_ours"),
    [
        (f"s3://mine/graft/endpoints/dogs/{ID}/model.tar.gz", True),
        (f"s3://mine/endpoints/dogs/{ID}/model.tar.gz", True),
        (f"s3://mine/graft/endpoints/dogs/{ID}/other/model.tar.gz", False),
        (f"s3://mine/graft/endpoints/dogs/{ID}0/model.tar.gz", False),
        (f"s3://mine/graft/myendpoints/dogs/{ID}/model.tar.gz", False),
        ("s3://mine/graft/endpoints/dogs/model.tar.gz", False),
        ("", False),
    ],
)
def test_an_archive_is_told_by_its_deployment(uri: str, is_ours: bool) -> None:
    assert is_archive_of(uri, "dogs", ID) is is_ours


def test_another_role_may_end_it() -> None:
    role = "arn:aws:iam::123456789012:role/mine"
    schedule = next(step for step in steps_of(deployment(ttl_role=role)) if step.service == "scheduler")
    assert schedule.request["Target"]["RoleArn"] == role


def test_a_name_that_is_too_long_is_refused_with_what_is_accepted() -> None:
    steps = {step.operation: step for step in steps_of(deployment("d" * 60))}
    said = list(problems("CreateSchedule", steps["CreateSchedule"].request, "scheduler"))
    assert said == [f"Name=graft-{'d' * 60}; accepted is at least 1 and at most 64 characters"]


def test_what_the_container_is_told() -> None:
    told = environment_of(deployment(engine=Engine.openvino, precision=ServingPrecision.bf16, threads=2))
    assert told == {
        "GRAFT_SERVE_ENGINE": "openvino",
        "GRAFT_SERVE_PRECISION": "bf16",
        "GRAFT_SERVE_THREADS": "2",
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
        "SAGEMAKER_MODEL_SERVER_WORKERS": "1",
        "SAGEMAKER_REGION": "us-east-1",
    }


ALL_CHANGED = (
    *("engine=openvino", "precision=int8", "threads=3", "top_k=2", "mode=throughput", "queue=9", "deadline=2.5"),
    *("max_bytes=1000", "max_pixels=2000", "max_photos=4", "allow_url=true", "url_hosts=[a.org,my-photos.example.com]"),
)


def test_our_container_heeds_every_key(tmp_path: Path) -> None:
    serve = configured(*(f"serve.{key}" for key in ALL_CHANGED)).serve
    assert changed_keys(serve) == list(RUNTIME_KEYS)
    # What is of packing, of this machine, or of the endpoint and not of its server.
    others = {"int8_margin", "int8_photos", "host", "port", "instance_type", "image", "ttl", "ttl_role", "plan"}
    assert {entry.name for entry in fields(ServeConfig)} == {*RUNTIME_KEYS, *others}
    assert started(environment_of(replace(deployment(), serve=serve)), tmp_path) == replace(serve, host="0.0.0.0")


def test_our_container_computes_in_the_precision_of_the_archive(tmp_path: Path) -> None:
    assert started(environment_of(deployment()), tmp_path) == ServeConfig(
        host="0.0.0.0", precision=ServingPrecision.fp32
    )


def started(environment: dict[str, str], folder: Path) -> ServeConfig:
    """What the entrypoint starts the server with."""
    python = folder / "python"
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["sh", str(ROOT / "serve" / "entrypoint.sh")],
        env=environment | {"PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    command = done.stdout.splitlines()
    assert command[:4] == ["-m", "serve", "local", "bundle=/opt/ml/model"]
    return read_arguments(command[4:], places=()).config


@pytest.mark.parametrize("image", [(), (f"serve.image={IMAGE}",)])
def test_what_awss_container_does_not_heed_is_refused(image: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        deploy(["endpoint=dogs", "serve.plan=true", "serve.mode=throughput", *image])
    assert str(caught.value) == (
        "serve.mode=throughput: AWS's container does not heed it; accepted is the default, latency, or serve.image=URI "
        "of the image that serve/Dockerfile makes"
    )
    with pytest.raises(ConfigError) as caught:
        deploy(["endpoint=dogs", "serve.plan=true", "serve.engine=torch", *image])
    assert str(caught.value) == (
        "serve.engine=torch: an endpoint is given a packed model, which serves openvino; accepted is auto or openvino"
    )
    check_container(configured("serve.engine=openvino", "serve.threads=2", *image).serve)
    check_container(configured("serve.mode=throughput", "serve.image=mine:1").serve)


@pytest.mark.parametrize(("ttl", "hours"), [("24h", 24), ("1h", 1), ("1.5h", 1.5), ("3d", 72), ("none", None)])
def test_hours_of(ttl: str, hours: float | None) -> None:
    assert hours_of(ttl) == hours


@pytest.mark.parametrize("ttl", ["0.9h", "30m", "24", "h", "-2h", "never", "366d", "9999999d", ""])
def test_a_time_that_is_none_is_refused(ttl: str) -> None:
    with pytest.raises(ConfigError) as caught:
        hours_of(ttl)
    assert str(caught.value) == f"serve.ttl={ttl}: accepted is 2h, 3d, from 1h to 365d, or none"


def configured(*argv: str) -> Config:
    return read_endpoint_arguments(["endpoint=dogs", *argv]).config


BUDGETS = [
    # 24 h x 0.115 = 2.76; 0.5 / 0.115 = 4.3 h.
    (
        ("budget.usd=0.5",),
        "budget.usd=0.5: 24 h (serve.ttl) of ml.m5.large cost $2.76; accepted is serve.ttl=4h, a cheaper "
        "serve.instance_type, or budget.usd=2.76 or more",
    ),
    (
        ("budget.usd=0.01",),
        "budget.usd=0.01: 24 h (serve.ttl) of ml.m5.large cost $2.76; accepted is a cheaper serve.instance_type, "
        "or budget.usd=2.76 or more",
    ),
    # 730 h x 0.115 = 83.95; 80 / 0.115 = 695 h.
    (
        ("budget.usd=80", "serve.ttl=none"),
        "budget.usd=80: a month of ml.m5.large cost $83.95; accepted is serve.ttl=695h, a cheaper "
        "serve.instance_type, or budget.usd=83.95 or more",
    ),
]


@pytest.mark.parametrize(("argv", "message"), BUDGETS)
def test_a_plan_above_the_budget_is_refused_with_the_sum(argv: tuple[str, ...], message: str) -> None:
    config = configured(*argv)
    with pytest.raises(ConfigError) as caught:
        check_endpoint_budget(make_endpoint_plan(config, "dogs", PRICES, None), config)
    assert str(caught.value) == message


def test_a_plan_within_the_budget_is_accepted() -> None:
    config = configured("budget.usd=2.76")
    check_endpoint_budget(make_endpoint_plan(config, "dogs", PRICES, "us-east-1"), config)


def test_no_budget_is_held_where_the_price_is_not_known() -> None:
    config = configured("budget.usd=100")
    with pytest.raises(ConfigError, match=r"the price of ml\.m5\.large there is not known"):
        check_endpoint_budget(make_endpoint_plan(config, "dogs", PRICES, "eu-west-1"), config)


PLAN = """\
plan: endpoint dogs, 1 x ml.m5.large, in us-east-1
container: of AWS for PyTorch 2.6 (serve.image names another)
creates: s3://BUCKET/graft/endpoints/dogs/ID/model.tar.gz, model, endpoint configuration and endpoint dogs, schedule \
graft-dogs that deletes it, a log in CloudWatch
dollars: $0.115 an hour, $2.76 a day, $83.95 a month, asked or not (us-east-1, prices of 2026-09-27, public copies of \
AWS's list of on-demand prices, training and real-time inference; not read from AWS), plus cents for S3 and logs
ends by itself: after 2 h, $0.23 (serve.ttl), also where this machine is off
assumed: region us-east-1, for none is set (launcher.region)
"""


def test_a_plan_needs_no_account_and_no_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_account(monkeypatch)
    monkeypatch.delenv("AWS_REGION", raising=False)

    def refuse(*_: Any) -> None:
        raise AssertionError("a plan opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    place = f"features.cache_dir={tmp_path}"
    deploy(["endpoint=dogs", "serve.plan=true", "serve.ttl=2h", place])
    assert capsys.readouterr().out == PLAN
    deploy(["endpoint=dogs", "launcher.plan=true", "serve.ttl=none", place])  # as a job has the key
    assert (
        "ends by itself: never (serve.ttl=none), at $83.95 a month: `python -m serve delete endpoint=dogs`"
        in capsys.readouterr().out
    )


def test_a_plan_loads_nothing_heavy(tmp_path: Path) -> None:
    heavy = "{'torch', 'lightning', 'pytorch_lightning', 'openvino', 'boto3', 'sagemaker', 'optuna', 'rich'}"
    script = (
        "import sys; from serve.__main__ import main; "
        f"main(['deploy', 'endpoint=dogs', 'serve.plan=true', 'launcher.region=us-east-1']); "
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_all_that_is_missing_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_account(monkeypatch)
    monkeypatch.delenv("AWS_REGION", raising=False)
    with pytest.raises(ConfigError) as caught:
        deploy(["endpoint=dogs"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "python -m serve deploy needs:"
    assert [line.strip().partition("=")[0] for line in lines[1:4]] == [
        "launcher.role",
        "launcher.region",
        "launcher.bucket",
    ]
    assert "serve.plan=true needs none of it" in lines[4]


WRONG = [
    ([], "endpoint is not set; give endpoint=NAME"),
    (
        ["endpoint=dogs", "serve.instance_tipe=x"],
        "serve.instance_tipe is not a key of the configuration; the nearest: serve.",
    ),
    (["endpoint=dogs", "launcher.max_hours=1"], "launcher.max_hours=1 is not accepted"),
    (["endpoint=dogs", "budget.usd=-1"], "budget.usd=-1"),
]


@pytest.mark.parametrize(("argv", "message"), WRONG)
def test_a_wrong_argument_is_named(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_endpoint_arguments(argv)
    assert str(caught.value).startswith(message)


def test_a_run_that_sagemaker_trained_knows_its_account(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "launcher: {role: 'arn:aws:iam::123456789012:role/graft', bucket: mine, region: eu-west-1, image: a:1, "
        "prefix: graft, tags: [owner=me], plan: false}\n"
    )
    argv = ["endpoint=dogs", f"run_dir={tmp_path}", "launcher.bucket=other"]
    launcher = read_endpoint_arguments(argv, places=("run_dir",)).config.launcher
    assert (launcher.role, launcher.region) == ("arn:aws:iam::123456789012:role/graft", "eu-west-1")
    assert (launcher.bucket, launcher.tags) == ("other", ["owner=me"])
    assert launcher.image is None


def test_dollars_so_far() -> None:
    created = datetime.now(UTC) - timedelta(hours=10)
    answer = {"EndpointName": "dogs", "EndpointStatus": "InService", "CreationTime": created}
    config = {"ProductionVariants": [{"InstanceType": "ml.m5.large", "InitialInstanceCount": 2}]}
    row = of_endpoint(answer, config, "never", PRICES, "us-east-1")
    assert row.machines == "2 x ml.m5.large"
    assert row.usd == pytest.approx(2.3, abs=0.01)
    elsewhere = of_endpoint(answer, config, "never", PRICES, "eu-west-1")
    assert (elsewhere.usd, elsewhere.unpriced) == (None, ("ml.m5.large",))
    unknown = of_endpoint(answer, {}, "never", PRICES, "us-east-1")
    assert (unknown.usd, unknown.unpriced) == (None, ("the machine of dogs",))


def test_a_sum_does_not_count_an_unknown_price_as_nothing() -> None:
    job = Costing("training job", "a", "InProgress", "1 x ml.m5.large", 3600, 0.5, "")
    search = Costing("tuning job", "b", "InProgress", "its trials'", 3600, None, "")
    dear = replace(job, usd=None, unpriced=("ml.p5.48xlarge",))
    dated = f"at {PRICES.region}'s prices of {PRICES.date}"
    assert in_all([job, job, search], "us-east-1", PRICES) == f"at most $1.00 so far, {dated}"
    assert in_all([job, dear, dear], "us-east-1", PRICES) == (
        f"at least $0.50 so far, {dated}; no price of ml.p5.48xlarge in us-east-1 "
        "(`python -m graft.launcher prices us-east-1` reads AWS's list)"
    )


def test_the_policy_allows_all_that_is_asked_for_and_on_this_endpoint_alone() -> None:
    config = configured("launcher.bucket=mine", "launcher.region=us-east-1")
    user = allowed(policies(config, "Dogs")["user"])
    asked = {f"{service}:{operation}" for service, operation, _ in requests().values()}
    asked |= {f"{service}:{operation}" for service, *operations, _ in _OPERATIONS.values() for operation in operations}
    asked |= {"sagemaker:InvokeEndpoint", "sagemaker:AddTags", "sagemaker:ListTags", "sagemaker:ListEndpoints"}
    assert asked | {"sagemaker:ListModels", "s3:DeleteObject", "iam:TagRole", "iam:GetRole"} <= set(user)
    assert user["sagemaker:DeleteEndpoint"] == ["arn:aws:sagemaker:us-east-1:*:endpoint/dogs"]
    # `list` looks at every endpoint, for the name does not tell whose it is.
    assert user["sagemaker:DescribeEndpoint"][0] == "arn:aws:sagemaker:us-east-1:*:endpoint/*"
    assert "arn:aws:sagemaker:us-east-1:*:endpoint-config/*" in user["sagemaker:DescribeEndpointConfig"]
    assert user["scheduler:GetSchedule"] == ["arn:aws:scheduler:us-east-1:*:schedule/default/graft-*"]
    assert user["s3:DeleteObject"] == ["arn:aws:s3:::mine/graft/endpoints/Dogs/*"]
    assert {action for action in user if "*" in user[action]} == {
        "sagemaker:ListEndpoints",
        "sagemaker:ListModels",
        "sagemaker:ListTrainingJobs",
        "sagemaker:ListHyperParameterTuningJobs",
        "pricing:GetProducts",
    }
    role = allowed(policies(config, "Dogs")["role"])
    assert "arn:aws:logs:us-east-1:*:log-group:/aws/sagemaker/Endpoints/Dogs" in role["logs:PutLogEvents"]
    assert "arn:aws:ecr:us-east-1:*:repository/pytorch-inference" in role["ecr:BatchGetImage"]


def test_an_endpoint_that_does_not_end_needs_no_role_for_it() -> None:
    user = allowed(policies(configured("serve.ttl=none"), "dogs")["user"])
    assert not {"iam:CreateRole", "scheduler:CreateSchedule"} & set(user)
    user = allowed(policies(configured("serve.ttl_role=arn:aws:iam::123456789012:role/mine"), "dogs")["user"])
    assert "iam:CreateRole" not in user
    assert "arn:aws:iam::123456789012:role/mine" in user["iam:PassRole"]


def write_golden() -> None:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, (service, operation, request) in requests().items():
        (GOLDEN / f"{name}.json").write_text(json.dumps({f"{service}.{operation}": request}, indent=1) + "\n")


if __name__ == "__main__":
    write_golden()
