"""The role under which endpoints delete themselves: made, brought up to date, and left alone where it is another's."""

from __future__ import annotations

import json
from typing import Any

from graft.errors import CloudError, ConfigError
from graft.launcher.account import DEPLOYMENT, OURS, Account
from graft.launcher.calls import code_of, explained
from graft.launcher.policy import TTL_ROLE
from graft.launcher.requests import Request
from graft.launcher.validation import check_request
from serve.endpoint_requests import account_number, partition_of, policy
from serve.endpoint_resources import call

POLICY = "delete-endpoints"
_OURS = {"Key": OURS[0], "Value": OURS[1]}  # `graft.launcher.account.tags_of` puts it on everything


def ttl_role_requests(account: Account) -> dict[str, Request]:
    """By operation of IAM, what makes the role, renews its trust, and says what it may do.

    It may delete endpoints of this project in this account and nothing else, and only Scheduler, working for this
    account, can take it on.
    """
    partition, number = partition_of(account.role), account_number(account.role)
    trust = policy(
        {
            "Effect": "Allow",
            "Principal": {"Service": "scheduler.amazonaws.com"},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"aws:SourceAccount": number}},
        }
    )
    allowed = policy(
        {
            "Effect": "Allow",
            "Action": "sagemaker:DeleteEndpoint",
            "Resource": f"arn:{partition}:sagemaker:*:{number}:endpoint/*",
            "Condition": {"StringEquals": {"aws:ResourceTag/project": "graft"}},
        }
    )
    return {
        "CreateRole": {
            "RoleName": TTL_ROLE,
            "AssumeRolePolicyDocument": trust,
            "Description": "Endpoints of graft delete themselves under it (serve.ttl)",
            "Tags": [{"Key": key, "Value": value} for key, value in account.tags if key != DEPLOYMENT],
        },
        "UpdateAssumeRolePolicy": {"RoleName": TTL_ROLE, "PolicyDocument": trust},
        "PutRolePolicy": {"RoleName": TTL_ROLE, "PolicyName": POLICY, "PolicyDocument": allowed},
    }


def make_ttl_role(account: Account) -> None:
    """Make the role, or bring the one of an earlier deployment up to date.

    Raises:
        ConfigError: one of this name is there that graft did not make; nothing of it is changed.
        CloudError: it may not be made.
    """
    requests = ttl_role_requests(account)
    for operation, request in requests.items():
        check_request(operation, request, "iam")
    try:
        _ask("CreateRole", requests["CreateRole"], account.region)
    except CloudError as error:
        if code_of(error) != "EntityAlreadyExists":
            raise
        renewed = requests["UpdateAssumeRolePolicy"]
        role = _ask("GetRole", {"RoleName": TTL_ROLE}, account.region)["Role"]
        _refuse_foreign(role)
        if role["AssumeRolePolicyDocument"] != json.loads(renewed["PolicyDocument"]):
            _ask("UpdateAssumeRolePolicy", renewed, account.region)
    _ask("PutRolePolicy", requests["PutRolePolicy"], account.region)


def _refuse_foreign(role: dict[str, Any]) -> None:
    """Refuse to take a role over that somebody else may rely on."""
    if _OURS not in role.get("Tags", []):
        raise ConfigError(
            f"the role {TTL_ROLE} is there, without the tag project=graft: somebody else made it, and it is left as it "
            "is; accepted is serve.ttl_role=ARN of a role that EventBridge Scheduler may take on and that may delete "
            "endpoints, or serve.ttl=none"
        )


def _ask(operation: str, request: Request, region: str) -> Any:
    with explained(f"the role {TTL_ROLE} (serve.ttl_role=ARN takes one that is there)"):
        return call("iam", operation, region)(**request)
