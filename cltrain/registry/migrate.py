"""Brings the database of a store to the schema of this code, with Alembic, which is imported only where there is
something to do. The revision is in a table of its own name, so that the database may be shared with other programs."""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from cltrain.errors import StoreError

HEAD = "0003"
VERSION_TABLE = "cltrain_revision"
FOLDER = Path(__file__).with_name("migrations")


def revision(connection: Connection) -> str | None:
    """Of the schema in a database; None where there is none, or one from before there were revisions. Raises
    `StoreError` for a schema that this code does not know yet."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    found = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))
    if found is not None and found > HEAD:
        raise StoreError(
            f"a newer cltrain made this store (schema {found}; this one knows {HEAD}): pip install --upgrade cltrain"
        )
    return found


def upgrade(connection: Connection) -> None:
    """Run the steps that are missing, in the transaction of `connection`, which must hold the lock of writers. The
    first step keeps tables that it finds, so a store from before there were revisions loses nothing."""
    found = revision(connection)
    if found == HEAD:
        return
    logging.getLogger("alembic").setLevel(logging.WARNING)  # importing it says what it finds
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(FOLDER), version_locations=[str(FOLDER)])
    steps = EnvironmentContext(Config(), scripts, fn=lambda at, _: scripts._upgrade_revs(HEAD, at))
    steps.configure(connection=connection, version_table=VERSION_TABLE)
    with steps:
        steps.run_migrations()
