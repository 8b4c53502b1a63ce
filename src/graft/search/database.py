"""A study in a database that several machines share: opened, and what takes more than one of Optuna's own steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from graft.environment import without_passwords
from graft.errors import ConfigError, RunError

if TYPE_CHECKING:
    import sqlalchemy
    from optuna.storages import RDBStorage

TABLES_TRIES = 10


def open_database(url: str) -> RDBStorage:
    """Optuna's storage over a database.

    Raises:
        ConfigError: it cannot be opened; the message does not tell the password.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return _with_tables(url)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        message = (
            f"search.storage={url} cannot be opened: {_reason(error)}; accepted is an Optuna URL such as "
            "postgresql+psycopg://USER@HOST/DATABASE"
        )
        raise ConfigError(without_passwords(message)) from None  # whose traceback would tell it


@contextmanager
def told_when_lost(url: str | None) -> Iterator[None]:
    """A line, and no traceback, where a database is lost meanwhile.

    Args:
        url: of the database; None, a journal, changes nothing.

    Raises:
        RunError: it was lost; the message does not tell the password.
    """
    if url is None:
        yield
        return
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        message = (
            f"search.storage={url} was lost: {_reason(error)}; trials that have ended are kept there, the same command "
            "goes on"
        )
        raise RunError(without_passwords(message)) from None  # whose traceback would tell it


def _reason(error: Exception) -> str:
    # Optuna's own says which step failed; what it was raised from says why.
    return " ".join(str(error.__cause__ or error).split())[:300]


def _with_tables(url: str) -> RDBStorage:
    """Optuna's storage; where another process is making the same tables, once it has."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    for _ in range(TABLES_TRIES):
        with suppress(IntegrityError, ProgrammingError):
            return RDBStorage(url)
        time.sleep(0.5)
    return RDBStorage(url)


def requeue(engine: sqlalchemy.Engine, trial_id: int, begun: datetime) -> None:
    """Put a running trial back into the queue, without its owner, unless it is no longer the one that was seen.

    Optuna reads and writes in two steps, between which another process may have put it back and begun it. Here the
    database compares: each time that a trial is begun, it has another time.

    Args:
        engine: of Optuna's storage, whose tables these are (optuna 5, schema v3.2.0.a).
        trial_id: of the trial.
        begun: when it was, as Optuna tells it: in local time. Its tables have UTC.

    Raises:
        SQLAlchemyError: the database cannot be reached.
    """
    from sqlalchemy import DateTime, bindparam, column, table, text, update

    # as text, for a database of its own takes no other for the type of a state
    waiting = text(
        "UPDATE trials SET state = 'WAITING' WHERE trial_id = :id AND state = 'RUNNING' AND datetime_start = :begun"
    ).bindparams(bindparam("begun", type_=DateTime))
    attributes = table("trial_user_attributes", column("trial_id"), column("key"), column("value_json"))
    nobody = update(attributes).where(attributes.c.trial_id == trial_id, attributes.c.key == "owner")
    with engine.begin() as connection:
        utc = begun.astimezone(UTC).replace(tzinfo=None)
        if connection.execute(waiting, {"id": trial_id, "begun": utc}).rowcount == 1:
            # Whoever asks for it next has not signed it yet, and is not to be taken for the one who left it.
            connection.execute(nobody.values(value_json="null"))
