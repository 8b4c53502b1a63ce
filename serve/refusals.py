"""A request that is not answered with a prediction: the status and the words that a client gets for it."""

from __future__ import annotations

import json


class Refusal(Exception):
    """What was wrong with a request, and what is accepted instead.

    Attributes:
        status: the HTTP status: 4xx for what the client can mend, 503 and 504 for what it can try again.
        problem: what was received or happened, as one sentence.
        accepted: what is accepted, or what to do.
        retry_after: seconds after which to try again, where waiting helps.
    """

    def __init__(self, status: int, problem: str, accepted: str, retry_after: int | None = None) -> None:
        super().__init__(f"{status}: {problem}; {accepted}")
        self.status = status
        self.problem = problem
        self.accepted = accepted
        self.retry_after = retry_after

    def body(self) -> bytes:
        """The answer's body, UTF-8 JSON: {"error": {"status", "problem", "accepted"}}."""
        error = {"status": self.status, "problem": self.problem, "accepted": self.accepted}
        return json.dumps({"error": error}).encode()


class Failure(Refusal):
    """A fault of the server, as a client may know it: no word of what it was."""

    def __init__(self) -> None:
        super().__init__(500, "the server failed", "try again, or tell who runs it")
