"""Our requests through SageMaker's own SDK (sagemaker.core.resources, extra aws): it takes them as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from graft.launcher.job import Entry
from graft.launcher.packing import channels_of, make_job
from graft.launcher.requests import Limits, source_uri, training_job_request
from graft.launcher.source import pack_source
from graft.launcher.submit import put
from tests.aws.client import HERE, send_photos
from tests.aws.server import running_aws
from tests.composing import composed
from tests.conftest import TOOLKIT
from tests.pictures import draw_folder
from tests.s3server import CREDENTIALS, forget_account
from tests.test_requests import REQUESTS
from tests.training import TINY

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
RESOURCES = {
    "CreateTrainingJob": "TrainingJob",
    "CreateHyperParameterTuningJob": "HyperParameterTuningJob",
    "CreateModel": "Model",
    "CreateEndpointConfig": "EndpointConfig",
    "CreateEndpoint": "Endpoint",
}


def snake(value: Any) -> Any:
    """A request's names as the SDK has them; the keys of maps, such as hyperparameters, stay."""
    if isinstance(value, list):
        return [snake(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower(): (
            inner if name in ("HyperParameters", "StaticHyperParameters", "Environment") else snake(inner)
        )
        for name, inner in value.items()
    }


def without_zeros(value: Any) -> Any:
    """A request without false and 0, which the SDK leaves out below the first level: they are the defaults."""
    if isinstance(value, list):
        return [without_zeros(item) for item in value]
    if isinstance(value, dict):
        return {name: without_zeros(inner) for name, inner in value.items() if inner not in (False, 0)}
    return value


class Sent(Exception):
    """The SDK called the service."""


@pytest.mark.parametrize("name", REQUESTS)
def test_the_sdk_sends_the_same_request(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sagemaker.core import resources

    sent: list[dict[str, Any]] = []

    class Client:
        def __getattr__(self, called: str) -> Any:
            def call(**parameters: Any) -> None:
                sent.append(parameters)
                raise Sent

            return call

    monkeypatch.setattr(resources.Base, "get_sagemaker_client", classmethod(lambda cls, **_: Client()))
    operation, request = REQUESTS[name]
    with pytest.raises(Sent):
        getattr(resources, RESOURCES[operation]).create(**snake(request), region="us-east-1")
    assert [without_zeros(parameters) for parameters in sent] == [without_zeros(request)]


@pytest.mark.toolkit
def test_a_job_of_the_sdk_runs_on_the_local_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sagemaker.core.resources import TrainingJob

    forget_account(monkeypatch)
    with running_aws(tmp_path / "aws", TOOLKIT) as aws:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": aws.url}.items():
            monkeypatch.setenv(name, value)
        photos = send_photos(aws, draw_folder(tmp_path / "drawn"))
        config = composed("data=folder", f"data.root={photos}", "run_dir=x", *TINY, "trainer.max_epochs=1")
        put(source_uri(HERE, "by-the-sdk"), pack_source(make_job(config, Entry.train)))
        request = training_job_request(config, HERE, "by-the-sdk", channels_of(config, HERE), Limits(600))
        job = TrainingJob.create(**snake(request), region="us-east-1")
        job.wait(poll=1)
        assert job.refresh().training_job_status == "Completed"
        assert {metric.metric_name for metric in job.final_metric_data_list} >= {"valid/loss", "valid/accuracy"}
