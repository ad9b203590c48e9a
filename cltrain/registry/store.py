"""Where a registry lives: a database and a root of blobs."""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from cltrain.errors import ConfigError, StoreError
from cltrain.registry import migrate
from cltrain.storage import Storage

DATABASE = "registry.db"
WRITERS = 0x636C747261696E  # the advisory lock of PostgreSQL that writers of a store take in turn: "cltrain"
LOCK_TIMEOUT_S = 30


@dataclass(frozen=True, kw_only=True)
class Store:
    """root: folder or URI of the blobs. url: SQLAlchemy URL of the database, SQLite or PostgreSQL; SQLite in the root
    when it is None."""

    root: str
    url: str | None = field(default=None, repr=False)

    @classmethod
    def at(cls, uri: str) -> Store:
        """A store that exists already, from what a user would type."""
        store = cls(root=uri)
        if store.url is None and store.storage.is_local and not store.storage.exists(DATABASE):
            raise StoreError(f"there is no store in {uri}: pass --store FOLDER, the store.root of a job")
        return store

    @cached_property
    def storage(self) -> Storage:
        return Storage(self.root)

    @cached_property
    def engine(self) -> Engine:
        url = self.url
        if url is None:
            if "://" in self.root and not self.root.startswith("file://"):
                raise ConfigError(
                    f"store.root={self.root} is remote, so the database needs store.url=postgresql+psycopg://…"
                )
            url = f"sqlite:///{self.storage.path(DATABASE)}"
        try:
            database = make_url(url).get_backend_name()
            if database not in _BEGIN:
                raise ConfigError(f"store.url={self._shown}: the registry can be in PostgreSQL or SQLite alone")
            engine = create_engine(url, pool_pre_ping=True)
            if database == "sqlite":
                self.storage.require_writable()
                event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _BEGIN[database])
            weakref.finalize(self, engine.dispose)
            with engine.begin() as connection:
                found = migrate.revision(connection)
            if found != migrate.HEAD:
                with _for_writing(engine).begin() as connection:  # one at a time: two would make the same table
                    migrate.upgrade(connection)
        except (ImportError, NoSuchModuleError) as error:
            raise ConfigError(
                f"store.url={self._shown} needs a driver that is not here ({error}): write postgresql+psycopg://… and"
                " pip install 'cltrain[postgres]'"
            ) from error
        except SQLAlchemyError as error:
            raise StoreError(f"cannot open the registry at {self._shown}: {error}") from error
        return engine

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One consistent look; it waits for nobody."""
        with self._session(_for_reading(self.engine)) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction, all of it or nothing, that sees what no other writer can change before it ends."""
        with self._session(_for_writing(self.engine)) as session:
            yield session

    @contextmanager
    def _session(self, engine: Engine) -> Iterator[Session]:
        try:
            with Session(engine, expire_on_commit=False) as session, session.begin():
                yield session
        except SQLAlchemyError as error:
            raise StoreError(f"the registry at {self._shown} failed: {error}") from error

    @property
    def _shown(self) -> str:
        """Where the registry is, without a password."""
        if self.url is None:
            return self.root
        try:
            url = make_url(self.url)
        except SQLAlchemyError:
            return "…"
        return url.difference_update_query(["password"]).render_as_string(hide_password=True)

    def to_json(self) -> dict[str, Any]:
        return {"root": self.root if "://" in self.root else os.path.abspath(self.root), "url": self.url}


def _for_reading(engine: Engine) -> Engine:
    if engine.dialect.name == "postgresql":
        return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return engine


def _for_writing(engine: Engine) -> Engine:
    if engine.dialect.name == "postgresql":
        # Each statement looks anew, so those behind the lock see all that the writer before has committed.
        return engine.execution_options(isolation_level="READ COMMITTED", writes=True)
    return engine.execution_options(writes=True)


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get("writes"):
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS})")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at once: a reader that turned writer would find that others had written in between.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's "begin" event says when a transaction starts
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={LOCK_TIMEOUT_S * 1000}", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:  # SQLite does not wait for another process that makes the same change: it fails at once
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    cursor.close()


_BEGIN = {"sqlite": _begin_sqlite, "postgresql": _begin_postgresql}
