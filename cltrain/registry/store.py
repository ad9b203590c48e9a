"""Where a registry lives: a database and a root of blobs."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from cltrain.errors import ConfigError, StoreError
from cltrain.registry.tables import Base
from cltrain.storage import Storage

DATABASE = "registry.db"


@dataclass(frozen=True, kw_only=True)
class Store:
    """root: folder or URI of the blobs. url: SQLAlchemy URL of the database; SQLite in the root when it is None."""

    root: str
    url: str | None = None

    @classmethod
    def at(cls, uri: str) -> Store:
        """A store that exists already, from what a user would type."""
        store = cls(root=uri)
        if store.url is None and store.storage.is_local and not Path(uri, DATABASE).exists():
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
            engine = create_engine(url, pool_pre_ping=True)
            if engine.dialect.name == "sqlite":
                self.storage.require_writable()
                event.listen(engine, "connect", _prepare_sqlite)
                event.listen(engine, "begin", _begin_sqlite)
            Base.metadata.create_all(engine)
        except SQLAlchemyError as error:
            raise StoreError(f"cannot open the registry at {url}: {error}") from error
        return engine

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One consistent look; it waits for nobody."""
        with self._session(self.engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction, all of it or nothing, that sees what no other writer can change before it ends."""
        with self._session(self.engine.execution_options(writes=True)) as session:
            yield session

    @contextmanager
    def _session(self, engine: Engine) -> Iterator[Session]:
        try:
            with Session(engine, expire_on_commit=False) as session, session.begin():
                yield session
        except SQLAlchemyError as error:
            raise StoreError(f"the registry at {self.url or self.root} failed: {error}") from error

    def to_json(self) -> dict[str, Any]:
        return {"root": self.root if "://" in self.root else os.path.abspath(self.root), "url": self.url}


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at once: a reader that turned writer would find that others had written in between.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's "begin" event says when a transaction starts
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
