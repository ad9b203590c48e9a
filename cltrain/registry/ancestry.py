"""Who came from whom, and which data is in whom: walks over the graph of versions, done by the database.

A version has in it what its parent had, and what the versions of other models had that it depends on.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from sqlalchemy import CTE, and_, literal, or_, select, union_all
from sqlalchemy.orm import Session

from cltrain.errors import ConfigError, StoreError
from cltrain.registry.base import CHAMPION, OfModel
from cltrain.registry.snapshots import index_snapshots, unread
from cltrain.registry.store import Store
from cltrain.registry.tables import AliasRow, DependencyRow, SnapshotFileRow, VersionRow
from cltrain.registry.versions import VersionRecord, describe

log = logging.getLogger(__name__)
Node = tuple[str, str, str]  # model, version and digest of its snapshot


@dataclass(frozen=True, kw_only=True)
class Impact:
    """Versions of any model, each kind in the order in which they were made. direct: trained on the data themselves;
    inherited: from a version that was, or with its outputs."""

    direct: tuple[VersionRecord, ...]
    inherited: tuple[VersionRecord, ...]

    @property
    def versions(self) -> tuple[VersionRecord, ...]:
        return (*self.direct, *self.inherited)

    @property
    def live(self) -> tuple[VersionRecord, ...]:
        """Those that have an alias, as champions and challengers do."""
        return tuple(v for v in self.versions if v.aliases)


class Ancestry(OfModel):
    def lineage(self, name: str) -> list[VersionRecord]:
        """The version and its ancestors, up to the stateless root, which comes last."""
        with self.store.reading() as session:
            up = _ancestors(self.model, self._row(session, name).version)
            here = and_(VersionRow.model == self.model, VersionRow.version == up.c.version)
            return self._records(session, session.scalars(select(VersionRow).join(up, here).order_by(up.c.depth)).all())

    def descendants(self, name: str) -> list[VersionRecord]:
        """Versions that came from this one, and those of other models that depend on it or on one of these, in the
        order in which they were made."""
        with self.store.reading() as session:
            number = self._row(session, name).version
            start = select(VersionRow.model, VersionRow.version).where(_is(self.model, number))
            found = [row for row in _reached(session, start) if (row.model, row.version) != (self.model, number)]
            return self._records(session, found)

    def trained_rows(self, name: str) -> int:
        """Rows in the snapshots of a version and all its ancestors."""
        return sum(int(v.trained["snapshot"]["rows"]) for v in self.lineage(name))

    def outdated(self, version: str) -> dict[str, str]:
        """Of the versions that a version depends on, those whose model has another champion by now: `model:version` of
        both."""
        with self.store.reading() as session:
            number = self._row(session, version).version
            query = select(DependencyRow, AliasRow.version).where(
                DependencyRow.model == self.model,
                DependencyRow.version == number,
                AliasRow.model == DependencyRow.on_model,
                AliasRow.alias == CHAMPION,
                AliasRow.version != DependencyRow.on_version,
            )
            found = session.execute(query.order_by(DependencyRow.on_model)).all()
            return {f"{on.on_model}:{on.on_version}": f"{on.on_model}:{now}" for on, now in found}


def impact(store: Store, *, snapshot: str | None = None, file: str | None = None) -> Impact:
    """Which versions of all models contain some data, themselves or by inheritance. The data is a `snapshot`, by its
    digest, or a `file` of the event log, by its digest or its name.

    A snapshot counts as containing a file if its manifest names it, as it does with every file that may have a row in
    it. Raises `StoreError` for data that the store has never seen. Manifests that are not there are named in a warning.
    """
    if (snapshot is None) == (file is None):
        raise ConfigError("impact needs the digest of a snapshot, or a file by its digest or name: exactly one of them")
    if file is not None:
        index_snapshots(store, unread(store))
        for digest in unread(store):
            log.warning("the manifest of snapshot %s is gone: which files its versions hold is not known", digest)
    with store.reading() as session:
        if snapshot is not None:
            holds = VersionRow.snapshot_digest == snapshot
        else:
            named = or_(SnapshotFileRow.file_digest == file, SnapshotFileRow.name == file)
            holds = VersionRow.snapshot_digest.in_(select(SnapshotFileRow.snapshot_digest).where(named))
        start = select(VersionRow.model, VersionRow.version).where(holds)
        direct = {(model, version) for model, version in session.execute(start)}
        if not direct:
            raise StoreError(f"no version was trained on {snapshot or file}: pass a digest or name as it was recorded")
        records = describe(session, _reached(session, start))
    return Impact(
        direct=tuple(v for v in records if (v.model, v.version) in direct),
        inherited=tuple(v for v in records if (v.model, v.version) not in direct),
    )


def _is(model: str, version: str) -> Any:
    return and_(VersionRow.model == model, VersionRow.version == version)


def _ancestors(model: str, number: str) -> CTE:
    """version, parent and depth: of a version and all above it."""
    columns = (VersionRow.version, VersionRow.parent)
    up = select(*columns, literal(0).label("depth")).where(_is(model, number)).cte("up", recursive=True)
    return up.union_all(
        select(*columns, up.c.depth + 1).where(VersionRow.model == model, VersionRow.version == up.c.parent)
    )


def _reached(session: Session, start: Any) -> list[VersionRow]:
    """Versions of `start`, pairs of model and version, and all that came from them, oldest first."""
    down = _down(session, start)
    query = select(VersionRow).join(down, and_(VersionRow.model == down.c.model, VersionRow.version == down.c.version))
    return list(session.scalars(query.order_by(VersionRow.created_at, VersionRow.model, VersionRow.ordinal)))


def inherited(session: Session, start: Any) -> dict[Node, tuple[str, str] | None]:
    """`start`, pairs of model and version, and all that came from it, oldest first. Each has the version from which it
    came: its parent, or else one that it depends on; None where neither is among them."""
    down = _down(session, start)
    here = and_(VersionRow.model == down.c.model, VersionRow.version == down.c.version)
    columns = (VersionRow.model, VersionRow.version, VersionRow.snapshot_digest, VersionRow.parent)
    rows = session.execute(select(*columns).join(down, here).order_by(VersionRow.created_at, VersionRow.ordinal)).all()
    known = {(model, version) for model, version, _, _ in rows}
    on = and_(DependencyRow.model == down.c.model, DependencyRow.version == down.c.version)
    bases = select(DependencyRow.model, DependencyRow.version, DependencyRow.on_model, DependencyRow.on_version)
    base = {(m, v): (on_m, on_v) for m, v, on_m, on_v in session.execute(bases.join(down, on)) if (on_m, on_v) in known}
    for model, version, _, parent in rows:
        if parent is not None and (model, parent) in known:
            base[model, version] = (model, parent)
    return {(model, version, snapshot): base.get((model, version)) for model, version, snapshot, _ in rows}


def _down(session: Session, start: Any) -> CTE:
    """model and version of `start` and of all that came from it. SQLite takes several recursive terms, and would read
    all versions at each step for one over a union; PostgreSQL takes one, and looks up each part of the union."""
    down = start.cte("down", recursive=True)
    child = (VersionRow.model, VersionRow.version, VersionRow.model, VersionRow.parent)
    user = (DependencyRow.model, DependencyRow.version, DependencyRow.on_model, DependencyRow.on_version)
    if session.get_bind().dialect.name == "sqlite":
        return down.union(*(select(*step[:2]).where(_follows(step[2:], down)) for step in (child, user)))
    names = ("model", "version", "of", "from_")
    either = [select(*(column.label(name) for column, name in zip(step, names, strict=True))) for step in (child, user)]
    steps = union_all(*either).subquery("steps").c
    return down.union(select(steps.model, steps.version).where(_follows((steps.of, steps.from_), down)))


def _follows(columns: Any, down: CTE) -> Any:
    return and_(columns[0] == down.c.model, columns[1] == down.c.version)
