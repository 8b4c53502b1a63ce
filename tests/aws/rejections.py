"""What the service refuses, in its own words where they are known."""

from __future__ import annotations


class Rejection(Exception):
    """An error of the API: its code, its message and its HTTP status."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status


def invalid(message: str) -> Rejection:
    """A request that cannot be obeyed."""
    return Rejection("ValidationException", message)


def in_use(message: str) -> Rejection:
    """A name that is taken."""
    return Rejection("ResourceInUse", message)


def not_found() -> Rejection:
    """A training or tuning job that is not there: the service says no more."""
    return invalid("Requested resource not found.")
