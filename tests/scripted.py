"""AWS's answers as a test wants them: botocore's before-send hook gives them in place of the network's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from graft.launcher import calls

Answer = tuple[int, dict[str, Any]]

THROTTLED: Answer = (400, {"__type": "ThrottlingException", "message": "Rate exceeded"})
BROKEN: Answer = (500, {"__type": "InternalFailure", "message": "We had a problem"})
DENIED: Answer = (400, {"__type": "AccessDeniedException", "message": "no identity-based policy allows it"})
ABSENT: Answer = (400, {"__type": "ValidationException", "message": "Requested resource not found."})
REGION = "us-east-1"


class Script:
    """What AWS answers; `asked` counts the requests by operation, retries included."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls.client.cache_clear()
        self.asked: Counter[str] = Counter()
        monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
        monkeypatch.setattr(calls, "LATE_S", 0.0)

    def answer(self, operation: str, *answers: Answer | Callable[[], Answer], service: str = "sagemaker") -> None:
        """Give these in turn, the last one for ever; None of the list lets the request through."""
        waiting = list(answers)

        def send(request: Any, **_: Any) -> Any:
            self.asked[operation] += 1
            answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            status, body = answer() if callable(answer) else answer
            return _response(request.url, status, body)

        calls.client(service, REGION).meta.events.register(f"before-send.{service}.{operation}", send)

    def reply(self, operation: str, respond: Callable[[dict[str, Any]], Answer], service: str = "sagemaker") -> None:
        """Answer each request with what `respond` makes of its body."""

        def send(request: Any, **_: Any) -> Any:
            self.asked[operation] += 1
            return _response(request.url, *respond(json.loads(request.body)))

        calls.client(service, REGION).meta.events.register(f"before-send.{service}.{operation}", send)


def _response(url: str, status: int, body: dict[str, Any]) -> Any:
    from botocore.awsrequest import AWSResponse

    class Raw:
        def stream(self, **_: Any) -> list[bytes]:
            return [json.dumps(body).encode()]

    return AWSResponse(url, status, {"Content-Type": "application/x-amz-json-1.1"}, Raw())


def training(state: str, phase: str = "", **more: Any) -> Answer:
    """What DescribeTrainingJob says."""
    return 200, {
        "TrainingJobStatus": state,
        "SecondaryStatus": phase or state,
        "CreationTime": 1_795_000_000,
        **more,
    }
