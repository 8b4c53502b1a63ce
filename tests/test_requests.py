"""Requests to SageMaker: what each configuration asks for, shown in tests/golden/requests, and what is refused.

`python -m tests.test_requests` writes the golden files anew; read their difference before committing it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from graft.command import Spread
from graft.config import Config
from graft.errors import ConfigError
from graft.launcher.account import Account, tags_of
from graft.launcher.requests import (
    Channel,
    Limits,
    endpoint_config_request,
    endpoint_request,
    model_request,
    training_job_request,
)
from graft.launcher.tuning import parameter_ranges, tuning_job_request
from graft.launcher.validation import check_request, in_python, problems
from tests.composing import composed

GOLDEN = Path(__file__).with_name("golden") / "requests"
IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.10-gpu-py313"
ACCOUNT = Account(
    role="arn:aws:iam::123456789012:role/graft",
    region="us-east-1",
    bucket="my-bucket",
    prefix="graft",
    image=IMAGE,
    tags=(("project", "graft"),),
)
PHOTOS = Channel("photos", "s3://my-bucket/photos/")
SPACE = {
    "optim.lr": Spread((), 0.001, 0.1, log=True),
    "data.batch_size": Spread((32, 64, 128, 256)),
    "trainer.max_epochs": Spread((), 2, 5, whole=True),
}
NAME = "graft-train-20261127-120000-abcd"


def in_cloud(*more: str) -> Config:
    return composed("data=folder", "data.root=s3://my-bucket/photos", "trainer=sagemaker_gpu", *more)


def training(*more: str, channels: tuple[Channel, ...] = (PHOTOS,)) -> dict[str, Any]:
    return training_job_request(in_cloud(*more), ACCOUNT, NAME, channels, Limits(14_400, None, 100_800))


def tuning(*more: str, spreads: dict[str, Spread] = SPACE) -> dict[str, Any]:
    config = in_cloud("search=original", "search.backend=tuning_job", *more)
    return tuning_job_request(config, ACCOUNT, "graft-tune-20261127-120000-abcd", [PHOTOS], Limits(3600), spreads, 8)


# Name of the golden file: operation and request.
REQUESTS = {
    "training": ("CreateTrainingJob", training()),
    "training_spot": ("CreateTrainingJob", training("launcher.spot=true", "launcher.max_hours=1")),
    "training_ddp": ("CreateTrainingJob", training("trainer=sagemaker_ddp")),
    "training_in_a_network": (
        "CreateTrainingJob",
        training("launcher.subnets=[subnet-1]", "launcher.security_groups=[sg-1]"),
    ),
    "training_with_weights": (
        "CreateTrainingJob",
        training(channels=(PHOTOS, Channel("weights", "s3://my-bucket/graft/weights/0/resnet50.pth"))),
    ),
    "training_drawn_photos": ("CreateTrainingJob", training("data=demo", channels=())),
    "training_service_profiler": ("CreateTrainingJob", training("launcher.service_profiler=true")),
    "tuning": ("CreateHyperParameterTuningJob", tuning()),
    "tuning_random": ("CreateHyperParameterTuningJob", tuning("search.sampler=random", "search.early_stopping=false")),
    "model": ("CreateModel", model_request(ACCOUNT, "graft-model-1", "s3://my-bucket/graft/model.tar.gz")),
    "endpoint_config": ("CreateEndpointConfig", endpoint_config_request(ACCOUNT, "graft-config-1", "graft-model-1")),
    "endpoint": ("CreateEndpoint", endpoint_request(ACCOUNT, "graft-endpoint-1", "graft-config-1")),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_the_one_on_record(name: str) -> None:
    operation, request = REQUESTS[name]
    assert json.loads((GOLDEN / f"{name}.json").read_text()) == {operation: request}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_passes_the_service_model(name: str) -> None:
    assert list(problems(*REQUESTS[name])) == []


def test_every_golden_file_is_of_a_request() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(REQUESTS)


def refused(**changes: Any) -> str:
    """What is said of a training job in which some fields are others; a double underscore goes down."""
    request = json.loads(json.dumps(training()))
    for path, value in changes.items():
        *folders, last = path.split("__")
        inner = request
        for folder in folders:
            inner = inner[folder]
        inner[last] = value
    with pytest.raises(ConfigError) as caught:
        check_request("CreateTrainingJob", request)
    return str(caught.value)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"TrainingJobName": "x" * 64}, f"TrainingJobName={'x' * 64}; accepted is at least 1 and at most 63 characters"),
    (
        {"TrainingJobName": "my_job"},
        "TrainingJobName=my_job; accepted is text that matches [a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}",
    ),
    (
        {"RoleArn": "arn:aws:iam::1234:role/graft-for-jobs"},
        "launcher.role=arn:aws:iam::1234:role/graft-for-jobs (RoleArn); accepted is text that matches "
        r"arn:aws[a-z\-]*:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+",
    ),
    (
        {"ResourceConfig__InstanceType": "ml.g4dn.2xlage"},
        "launcher.instance_type=ml.g4dn.2xlage (ResourceConfig.InstanceType); accepted is one of 225, the nearest: "
        "ml.g4dn.2xlarge, ml.g4dn.12xlarge, ml.g4dn.xlarge, ml.g4dn.8xlarge",
    ),
    (
        {"Tags": [{"Key": "owner", "Value": "a" * 257}]},
        f"launcher.tags={'a' * 257} (Tags.0.Value); accepted is at most 256 characters",
    ),
    ({"Tags": [{"Key": "who?", "Value": ""}]}, "launcher.tags=who? (Tags.0.Key); accepted is text that matches "),
    (
        {"StoppingCondition__MaxRuntimeInSeconds": 0},
        "launcher.max_hours=0 (StoppingCondition.MaxRuntimeInSeconds); accepted is at least 1",
    ),
    (
        {"VpcConfig": {"Subnets": ["a"] * 17, "SecurityGroupIds": ["b"]}},
        "launcher.subnets=17 entries (VpcConfig.Subnets); accepted is at least 1 and at most 16 entries",
    ),
    (
        {"HyperParameters": {"k": "v" * 2501}},
        f"HyperParameters.k={'v' * 2501}; accepted is at most 2500 characters",
    ),
    (
        {"AlgorithmSpecification__TrainingInputMode": "Slow"},
        "AlgorithmSpecification.TrainingInputMode=Slow; accepted is Pipe, File, FastFile",
    ),
    # botocore's own check: names, types, required fields.
    ({"Nmae": 1}, 'CreateTrainingJob: Unknown parameter in input: "Nmae"'),
    (
        {"ResourceConfig__VolumeSizeInGB": "50"},
        "CreateTrainingJob: Invalid type for parameter ResourceConfig.VolumeSize",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_a_field_that_is_not_accepted_is_named(changes: dict[str, Any], message: str) -> None:
    said = refused(**changes)
    assert said.startswith(message)


def patterns(shape: Any, seen: set[str]) -> set[str]:
    """All patterns below a shape of the service model."""
    if shape.name in seen:
        return set()
    seen.add(shape.name)
    inner = [*getattr(shape, "members", {}).values()]
    inner += [getattr(shape, name) for name in ("member", "key", "value") if hasattr(shape, name)]
    own = {shape.metadata["pattern"]} if "pattern" in shape.metadata else set()
    return own.union(*(patterns(part, seen) for part in inner))


@pytest.mark.parametrize("operation", sorted({operation for operation, _ in REQUESTS.values()}))
def test_the_patterns_of_an_operation_are_read(operation: str) -> None:
    from botocore.session import get_session

    model = get_session().get_service_model("sagemaker").operation_model(operation)
    found = patterns(model.input_shape, set())
    assert found
    for pattern in found:
        re.compile(in_python(pattern))


def test_letters_of_any_script_are_accepted_in_tags() -> None:
    request = training() | {"Tags": [{"Key": "Züchter", "Value": "狗 der Woche: a_b/1+2=3@x"}]}
    assert list(problems("CreateTrainingJob", request)) == []


def test_spot_waits_longer_than_it_runs() -> None:
    assert training("launcher.spot=true")["StoppingCondition"] == {
        "MaxRuntimeInSeconds": 14_400,
        "MaxWaitTimeInSeconds": 100_800,
    }
    longest = training_job_request(in_cloud("launcher.spot=true"), ACCOUNT, NAME, [PHOTOS], Limits(28 * 86_400))
    assert longest["StoppingCondition"] == {"MaxRuntimeInSeconds": 2_419_200, "MaxWaitTimeInSeconds": 2_419_200}
    assert training()["StoppingCondition"] == {"MaxRuntimeInSeconds": 14_400}


def test_a_job_that_goes_on_has_the_checkpoints_of_the_earlier_one() -> None:
    request = training_job_request(in_cloud(), ACCOUNT, NAME, [PHOTOS], Limits(60), "s3://my-bucket/old/checkpoints")
    assert request["CheckpointConfig"]["S3Uri"] == "s3://my-bucket/old/checkpoints"


def test_ranges_of_every_kind() -> None:
    spreads = {
        "a.b": Spread((True, False, None)),
        "c.d": Spread((), 1, 9, whole=True, log=True),
        "e": Spread((), 0.5, 1),
    }
    assert parameter_ranges(spreads) == {
        "CategoricalParameterRanges": [{"Name": "a__b", "Values": ["true", "false", "null"]}],
        "IntegerParameterRanges": [
            {"Name": "c__d", "MinValue": "1", "MaxValue": "9", "ScalingType": "Logarithmic"},
        ],
        "ContinuousParameterRanges": [
            {"Name": "e", "MinValue": "0.5", "MaxValue": "1", "ScalingType": "Linear"},
        ],
    }


CONTRADICTIONS = [
    (lambda: training("launcher.subnets=[subnet-1]"), "give both, or neither"),
    (lambda: training("launcher.service_debugger=true"), "pytorch-training:2.10-gpu-py313 has no smdebug"),
    (lambda: tuning("launcher.service_profiler=true"), "a tuning job takes no hook and no profiler"),
    (lambda: tuning("search.pruner=median"), "search.pruner=median: a tuning job stops trials by a rule of its own"),
    (lambda: tuning("search.sampler=grid"), "a tuning job's grid takes lists of values"),
    (lambda: tags_of(in_cloud("launcher.tags=[owner]")), "launcher.tags=[owner]: accepted is KEY=VALUE each"),
    (
        lambda: tags_of(in_cloud("launcher.tags=['Project=mine']")),
        "launcher.tags=[Project=mine]: Project is not free; accepted is any key but project, deployment, which graft "
        "sets, and aws:..., which AWS keeps",
    ),
    (lambda: tags_of(in_cloud("launcher.tags=['deployment=1']")), "launcher.tags=[deployment=1]: deployment is not"),
    (lambda: tags_of(in_cloud("launcher.tags=['aws:x=1']")), "launcher.tags=[aws:x=1]: aws:x is not free; accepted"),
    (
        lambda: tags_of(in_cloud("launcher.tags=['team=a','team=b']")),
        "launcher.tags=[team=b]: team is given more than once; accepted is each key once",
    ),
]


@pytest.mark.parametrize(("make", "message"), CONTRADICTIONS)
def test_what_contradicts_itself_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)


def test_an_old_image_may_have_the_hook_of_the_service() -> None:
    account = Account(**{**vars(ACCOUNT), "image": IMAGE.replace("2.10", "1.13")})
    config = in_cloud("launcher.service_debugger=true", "debugger.train_interval=100", "debugger.eval_interval=10")
    request = training_job_request(config, account, NAME, [PHOTOS], Limits(60))
    check_request("CreateTrainingJob", request)
    assert request["DebugHookConfig"]["CollectionConfigurations"][0]["CollectionParameters"] == {
        "train.save_interval": "100",
        "eval.save_interval": "10",
    }


if __name__ == "__main__":
    for name, (operation, request) in REQUESTS.items():
        (GOLDEN / f"{name}.json").write_text(json.dumps({operation: request}, indent=1, ensure_ascii=False) + "\n")
