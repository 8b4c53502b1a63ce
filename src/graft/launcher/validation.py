"""Requests checked against the service's own model before anything is sent; no credentials, no network.

botocore checks names, types and what is required. Patterns, enums, lengths and ranges stand in the model too, and
are checked here by walking it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from graft.errors import ConfigError

# Field of a request -> the key of the configuration that it comes from.
_KEYS = {
    "RoleArn": "launcher.role",
    "ExecutionRoleArn": "launcher.role",
    "S3OutputPath": "launcher.bucket",
    "TrainingImage": "launcher.image",
    "Image": "serve.image",
    "InstanceCount": "trainer.num_nodes",
    "VolumeSizeInGB": "launcher.volume_gb",
    "Subnets": "launcher.subnets",
    "SecurityGroupIds": "launcher.security_groups",
    "Tags": "launcher.tags",
    "MaxRuntimeInSeconds": "launcher.max_hours",
    "MaxParallelTrainingJobs": "launcher.max_parallel",
    "MaxNumberOfTrainingJobs": "search.trials",
    "TrainingJobDefinition.ResourceConfig.InstanceType": "launcher.instance_type",
    "ResourceConfig.InstanceType": "launcher.instance_type",
    "ParameterRanges": "search.space",
}
# Classes of characters that the models name as Java does, in Python's words. A letter is a word character here, which
# takes digits and the underscore too: the models name these beside it.
_CLASSES = {
    r"\p{L}": r"\w",
    r"\p{N}": r"\d",
    r"\p{Z}": r" ",
    r"\p{Alnum}": r"A-Za-z0-9",
    r"\p{ASCII}": r"\x00-\x7f",
}


def check_request(operation: str, request: Mapping[str, Any], service: str = "sagemaker") -> None:
    """Refuse a request that the service would refuse for its form.

    Args:
        operation: such as CreateTrainingJob.
        request: its parameters.
        service: as botocore calls it.

    Raises:
        ConfigError: the first field that is not accepted, with its value and what is.
    """
    problem = next(problems(operation, request, service), None)
    if problem:
        raise ConfigError(problem)


def problems(operation: str, request: Mapping[str, Any], service: str = "sagemaker") -> Iterator[str]:
    """Everything that the service's model does not accept of a request, a sentence each."""
    from botocore.validate import ParamValidator

    shape = _model(service).operation_model(operation).input_shape
    report = ParamValidator().validate(dict(request), shape).generate_report().splitlines()
    # What is too small botocore tells too, without the key and the other end.
    if formal := [line for line in report if "valid min" not in line]:
        yield from (f"{operation}: {line}" for line in formal)
        return
    yield from _walk(request, shape, ())


@cache
def _model(service: str) -> Any:
    """Botocore's model of a service; to read that of SageMaker takes 0.1 s."""
    from botocore.session import get_session

    return get_session().get_service_model(service)


def _walk(value: Any, shape: Any, path: tuple[str, ...]) -> Iterator[str]:
    if shape.type_name == "structure":
        for name, inner in value.items():
            yield from _walk(inner, shape.members[name], (*path, name))
        return
    accepted = _accepted(value, shape)
    if accepted:
        yield f"{_said(path, value)}; accepted is {accepted}"
    if shape.type_name == "list":
        for number, inner in enumerate(value):
            yield from _walk(inner, shape.member, (*path, str(number)))
    elif shape.type_name == "map":
        for name, inner in value.items():
            yield from _walk(name, shape.key, (*path, "(key)"))
            yield from _walk(inner, shape.value, (*path, name))


def _accepted(value: Any, shape: Any) -> str | None:
    """What is accepted in place of a value; None where it is."""
    limits = shape.metadata
    if "enum" in limits and value not in limits["enum"]:
        return _one_of(str(value), list(limits["enum"]))
    low, high = limits.get("min"), limits.get("max")
    sized = shape.type_name in ("string", "list", "map", "blob")
    size = len(value) if sized else value
    if (low is not None and size < low) or (high is not None and size > high):
        return _range(low, high, shape.type_name if sized else "number")
    pattern = limits.get("pattern")
    if pattern and not re.fullmatch(in_python(pattern), value, re.DOTALL):
        return f"text that matches {pattern}"
    return None


def _range(low: int | None, high: int | None, kind: str) -> str:
    nouns = {"string": " characters", "list": " entries", "map": " entries", "blob": " bytes"}
    bounds = [f"at least {low}" if low else "", f"at most {high}" if high is not None else ""]
    return " and ".join(filter(None, bounds)) + nouns.get(kind, "")


def _one_of(value: str, options: list[str]) -> str:
    """A few options as they are; of many, the nearest to `value`."""
    import difflib

    if len(options) <= 12:
        return ", ".join(options)
    near = difflib.get_close_matches(value, options, n=4, cutoff=0.0)
    return f"one of {len(options)}, the nearest: {', '.join(near)}"


def in_python(pattern: str) -> str:
    """A pattern of the service model, which are Java's, as Python has it."""
    for theirs, ours in _CLASSES.items():
        pattern = pattern.replace(theirs, ours)
    return pattern


def _said(path: tuple[str, ...], value: Any) -> str:
    """Key of the configuration, where one is known, field and value."""
    dotted = ".".join(path)
    names = [part for part in path if not part.isdigit()]
    key = next((_KEYS[name] for name in (".".join(names), *reversed(names)) if name in _KEYS), None)
    text = value if isinstance(value, str | int | float) else f"{len(value)} entries"
    return f"{key}={text} ({dotted})" if key else f"{dotted}={text}"
