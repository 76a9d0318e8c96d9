"""A PostgreSQL database that machines share: its address, its locks, its clock, and what says that it is away."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import cache
from typing import TypeVar

import sqlalchemy
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, PendingRollbackError

from frostline.errors import Refused, first_line
from frostline.tracking.patience import Patience

VARIABLE = "FROSTLINE_STUDY_URL"  # of the environment alone: it holds a password
SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
ANSWER_S = 5  # in which the server must take a connection
# libpq's: a server whose machine is gone is noticed within a minute, whatever waits for its answer.
CONNECT = {
    "connect_timeout": ANSWER_S,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
T = TypeVar("T")
_held: ContextVar[sqlalchemy.Connection | None] = ContextVar("_held", default=None)  # by a lock, around this code


def database_url() -> str | None:
    """The database's address, as SQLAlchemy wants it; None where the environment names none.

    Raises Refused, without quoting it, where it is no address of a PostgreSQL database.
    """
    given = os.environ.get(VARIABLE)
    if not given:
        return None
    scheme, _, rest = given.partition("://")
    if scheme in SCHEMES and rest:
        with suppress(ArgumentError, ValueError):
            url = f"postgresql+psycopg://{rest}"
            if sqlalchemy.make_url(url).database:
                return url
    raise Refused(
        f"{VARIABLE} is no address of a PostgreSQL database. Allowed: postgresql://USER:PASSWORD@HOST:PORT/DATABASE."
    )


def shown_address() -> str:
    """Host, port and database, which may be shown."""
    url = sqlalchemy.make_url(_require_url())
    return f"postgresql://{url.host or 'localhost'}:{url.port or 5432}/{url.database}"


def refuse_unusable() -> None:
    """Raises Refused where the database does not take a connection now, before any work."""
    try:
        with _connect():
            pass
    except ModuleNotFoundError as error:
        raise Refused(f"{VARIABLE} needs the package {error.name}: pip install 'psycopg[binary]'.") from error
    except (OperationalError, InterfaceError) as error:
        raise Refused(
            f"The study's database {shown_address()} cannot be used: {first_line(error)}. Start it, or change {VARIABLE}."
        ) from error


@contextmanager
def advisory_lock(name: str) -> Iterator[None]:
    """Only one process of all that share the database is inside a block of this name; the others wait.

    PostgreSQL gives the lock back when the process or its machine is gone. Where PostgreSQL itself ends meanwhile, the lock is lost
    and the block goes on: what must not happen twice has to be seen from the data, too.
    """
    key = int.from_bytes(hashlib.sha256(f"frostline {name}".encode()).digest()[:8], "big", signed=True)
    connection = _connect()
    token = _held.set(connection)
    try:
        # Until the transaction ends; so it works behind a pool of connections that gives them out by transaction.
        connection.execute(sqlalchemy.text("select pg_advisory_xact_lock(:key)"), {"key": key})
        yield
    finally:
        _held.reset(token)
        with suppress(DBAPIError):
            connection.close()


def read_clock() -> tuple[float, float]:
    """Seconds since 1970 by the database's clock: now, and when it began to answer. Inside a lock its connection is asked."""
    asked = "select extract(epoch from clock_timestamp()), extract(epoch from pg_postmaster_start_time())"
    held = _held.get()
    with nullcontext(held) if held else _connect() as connection:
        now, since = connection.execute(sqlalchemy.text(asked)).one()
    return float(now), float(since)


def call_patiently(function: Callable[[], T], patience_s: float) -> T:
    """What `function` returns; called again while the database is away, for `patience_s` seconds at most.

    It may have been done in part before, or wholly with its answer lost. Raises Refused where the database stays away.
    """
    patience = Patience("study", shown_address(), patience_s, "The study's database")
    while True:
        try:
            result = function()
        except Exception as error:
            if not is_away(error):
                raise
            patience.wait(error)
            continue
        patience.end()
        return result


def is_away(error: BaseException | None) -> bool:
    """Does an error, or what caused it, say that the database did not answer?"""
    while error is not None:
        # The last is what Optuna gets where it asks again within the transaction whose connection went.
        if isinstance(error, (OperationalError, InterfaceError, PendingRollbackError)):
            return True
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        error = error.__cause__
    return False


def _connect() -> sqlalchemy.Connection:
    return _engine(_require_url()).connect()


@cache
def _engine(url: str) -> sqlalchemy.Engine:
    # One connection is kept: to open one takes longer than most locks are held.
    return sqlalchemy.create_engine(url, pool_size=1, max_overflow=2, pool_pre_ping=True, connect_args=CONNECT)


def _require_url() -> str:
    url = database_url()
    assert url is not None, VARIABLE
    return url
