"""The IAM policies: exactly what a configuration uses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from graft.config import Config
from graft.launcher.__main__ import main
from graft.launcher.policy import policies
from tests.composing import composed
from tests.s3server import forget_account
from tests.test_api_faults import OPERATIONS

ROLE = "arn:aws:iam::123456789012:role/graft"
ACCOUNT = (f"launcher.role={ROLE}", "launcher.bucket=mine", "launcher.region=eu-west-1")


def in_cloud(*more: str) -> Config:
    return composed("data=folder", "data.root=s3://photos/dogs", "trainer=sagemaker_gpu", *ACCOUNT, *more)


def allowed(policy: dict[str, Any]) -> dict[str, list[str]]:
    """Action -> resources."""
    found: dict[str, list[str]] = {}
    for statement in policy["Statement"]:
        for action in statement["Action"]:
            found.setdefault(action, []).extend(statement["Resource"])
    return found


def test_who_starts_jobs_may_start_those_of_graft_and_pass_its_role() -> None:
    user = allowed(policies(in_cloud())["user"])
    assert user["sagemaker:CreateTrainingJob"] == ["arn:aws:sagemaker:eu-west-1:*:training-job/graft-*"]
    assert user["iam:PassRole"] == [ROLE]
    assert user["s3:PutObject"] == ["arn:aws:s3:::mine/graft/*"]
    assert user["logs:GetLogEvents"] == [
        "arn:aws:logs:eu-west-1:*:log-group:/aws/sagemaker/TrainingJobs",
        "arn:aws:logs:eu-west-1:*:log-group:/aws/sagemaker/TrainingJobs:*",
    ]
    assert not any("Tuning" in action for action in user if "List" not in action)


def test_whoever_starts_jobs_reads_the_photos_that_reports_show() -> None:
    assert "arn:aws:s3:::photos/dogs/*" in allowed(policies(in_cloud())["user"])["s3:GetObject"]


def test_the_role_is_passed_to_sagemaker_alone() -> None:
    statements = policies(in_cloud())["user"]["Statement"]
    (passing,) = (statement for statement in statements if statement["Action"] == ["iam:PassRole"])
    assert passing["Condition"] == {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}


def test_a_tuning_job_takes_more() -> None:
    user = allowed(policies(in_cloud("search.backend=tuning_job"))["user"])
    arn = "arn:aws:sagemaker:eu-west-1:*:hyper-parameter-tuning-job/graft-*"
    assert user["sagemaker:CreateHyperParameterTuningJob"] == [arn]
    assert user["sagemaker:ListTrainingJobsForHyperParameterTuningJob"] == [arn]


def test_the_role_reads_photos_and_weights_and_writes_only_its_own_place() -> None:
    image = "launcher.image=123456789012.dkr.ecr.eu-west-1.amazonaws.com/mine:1"
    role = allowed(policies(in_cloud("model.weights=s3://models/resnet50.pth", image))["role"])
    assert role["s3:PutObject"] == ["arn:aws:s3:::mine/graft/*"]
    assert role["s3:GetObject"] == [
        "arn:aws:s3:::mine/graft/*",
        "arn:aws:s3:::photos/dogs/*",
        "arn:aws:s3:::models/resnet50.pth",
    ]
    assert role["s3:ListBucket"] == ["arn:aws:s3:::mine", "arn:aws:s3:::models", "arn:aws:s3:::photos"]
    assert role["ecr:BatchGetImage"] == ["arn:aws:ecr:eu-west-1:123456789012:repository/mine"]
    assert not any(action.startswith("ec2:") for action in role)


@pytest.mark.parametrize("version", ["", ":1", ":1@sha256:0123", "@sha256:0123"])
def test_the_repository_of_an_image_is_known_without_its_version(version: str) -> None:
    image = f"launcher.image=123456789012.dkr.ecr.eu-west-1.amazonaws.com/of/mine{version}"
    pulled = allowed(policies(in_cloud(image.replace("=", "='", 1) + "'"))["role"])["ecr:BatchGetImage"]
    assert pulled == ["arn:aws:ecr:eu-west-1:123456789012:repository/of/mine"]


def test_the_documents_are_no_longer_than_iam_accepts() -> None:
    # White space does not count: "IAM and AWS STS quotas", 6,144 for a managed policy, 10,240 within a role.
    config = in_cloud(
        "search.backend=tuning_job",
        "model.weights=s3://models/resnet50.pth",
        f"launcher.bucket={'b' * 63}",
        "launcher.subnets=[subnet-1]",
        "launcher.security_groups=[sg-1]",
    )
    found = policies(config, "e" * 57)
    lengths = {who: len("".join(json.dumps(document).split())) for who, document in found.items()}
    assert lengths["user"] <= 6144
    assert max(lengths["role"], lengths["trust"]) <= 10_240
    # Why docs/sagemaker.md attaches it: within a user there is place for so much, and it is more with any endpoint.
    assert len("".join(json.dumps(policies(in_cloud(), "dogs")["user"]).split())) > 2048


# What AWS calls the permission where it is not called as the operation: "Actions, resources, and condition keys".
PERMISSIONS = {
    ("s3", "HeadBucket"): "s3:ListBucket",
    ("s3", "ListObjectsV2"): "s3:ListBucket",
    ("s3", "HeadObject"): "s3:GetObject",
    ("s3", "CreateMultipartUpload"): "s3:PutObject",
    ("s3", "UploadPart"): "s3:PutObject",
    ("s3", "CompleteMultipartUpload"): "s3:PutObject",
    ("sagemaker-runtime", "InvokeEndpoint"): "sagemaker:InvokeEndpoint",
}
# Anybody may ask who he is, and whoever began an upload may abort it.
FREE = {("sts", "GetCallerIdentity"), ("s3", "AbortMultipartUpload")}


def test_every_operation_that_is_asked_for_is_allowed() -> None:
    """Of the operations that tests/test_api_faults.py finds in the code."""
    user = allowed(policies(in_cloud("search.backend=tuning_job"), "dogs")["user"])
    needed = {PERMISSIONS.get(operation, ":".join(operation)) for operation in OPERATIONS - FREE}
    assert needed - set(user) == set()


def test_a_network_takes_more() -> None:
    config = in_cloud("launcher.subnets=[subnet-1]", "launcher.security_groups=[sg-1]")
    assert "ec2:CreateNetworkInterface" in allowed(policies(config)["role"])


def test_nothing_is_allowed_on_everything_that_knows_a_resource() -> None:
    everywhere = {
        action
        for policy in ("user", "role")
        for action, resources in allowed(policies(in_cloud("search.backend=tuning_job"))[policy]).items()
        if "*" in resources
    }
    assert everywhere == {
        "sagemaker:ListTrainingJobs",
        "sagemaker:ListHyperParameterTuningJobs",
        "pricing:GetProducts",
        "cloudwatch:PutMetricData",
        "ecr:GetAuthorizationToken",
    }


def test_regions_of_other_partitions_have_other_arns() -> None:
    found = policies(in_cloud("launcher.region=cn-north-1"))["user"]
    assert allowed(found)["s3:PutObject"] == ["arn:aws-cn:s3:::mine/graft/*"]


def test_the_command_prints_a_document_for_the_console(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_account(monkeypatch)
    main(["policy", "trainer=sagemaker_gpu", "who=trust"])
    assert json.loads(capsys.readouterr().out) == {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
        ],
    }
    main(["policy", "trainer=sagemaker_gpu", "who=user"])
    assert "arn:aws:sagemaker:REGION:*:training-job/graft-*" in capsys.readouterr().out
