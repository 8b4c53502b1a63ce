"""A study in a database that several machines share: opened, and what takes more than one of Optuna's own steps."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from graft.environment import without_passwords
from graft.errors import ConfigError

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
        reason = " ".join(str(error).split())[:300]
        message = (
            f"search.storage={url} cannot be opened: {reason}; accepted is an Optuna URL such as "
            "postgresql+psycopg://USER@HOST/DATABASE"
        )
        raise ConfigError(without_passwords(message)) from None  # whose traceback would tell it


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
