"""Which versions were trained on one row: told from what the store keeps, when its file is long gone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import pyarrow as pa
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from cltrain.clock import from_us
from cltrain.data.event_log import FIRST_US, LAST_US, NEVER
from cltrain.data.holdout import is_held_out
from cltrain.data.row_index import keys_of
from cltrain.records import Json, to_json
from cltrain.registry import Store
from cltrain.registry.ancestry import inherited
from cltrain.registry.segments import Hit, find
from cltrain.registry.snapshots import index_snapshots, unread
from cltrain.registry.tables import AliasRow, SnapshotFileRow, SnapshotRow, VersionRow
from cltrain.seeding import hash_ids


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A version that has the row in it. snapshot: digest of the one that it was trained on, which takes the row if
    `through` is None; else `through` is the version, as `model:version`, that it has the row from: its parent, or one
    that it was trained with."""

    model: str
    version: str
    snapshot: str
    through: str | None
    aliases: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Place:
    """One file that has a row of this id. label_time: from when the row could be trained on; None without a label.
    why_not: why no version was trained on it, where none was."""

    file: str
    file_digest: str
    event_time: datetime | None
    label_time: datetime | None
    held_out: bool
    why_not: str | None
    versions: tuple[Holder, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """places: by event time; none if no file of any snapshot has such a row. not_indexed: files of snapshots of which
    the store has no index, so that they may have one. lost: digests of snapshots whose manifests are gone."""

    event_id: str
    places: tuple[Place, ...]
    not_indexed: tuple[str, ...]
    lost: tuple[str, ...]

    def to_json(self) -> Json:
        return {"event_id": self.event_id, "found": bool(self.places)} | {
            name: to_json(getattr(self, name)) for name in ("places", "not_indexed", "lost")
        }


def versions_with(store: Store, event_id: str, models: Collection[str] | None = None) -> Answer:
    """Every version of `models` (None: of all) that was trained on the rows with an event id: because its snapshot
    takes them, or because it came from such a version or was trained with one. Rows without an id in the data have
    `FILE#ROW`, counted from 0. Raises `StoreError` where an index was lost."""
    lost = unread(store)
    if lost:
        index_snapshots(store, lost)
        lost = unread(store)
    hits = find(store, float(keys_of(pa.array([event_id]))[0]))
    with store.reading() as session:
        places = tuple(_place(session, hit, event_id, models) for hit in hits)
        bare = select(SnapshotFileRow.name).where(SnapshotFileRow.index_digest.is_(None)).distinct()
        not_indexed = tuple(session.scalars(bare.order_by(SnapshotFileRow.name)))
    return Answer(event_id=event_id, places=places, not_indexed=not_indexed, lost=tuple(lost))


def _place(session: Session, hit: Hit, event_id: str, models: Collection[str] | None) -> Place:
    named = SnapshotFileRow.index_digest == hit.index
    name, digest = session.execute(
        select(SnapshotFileRow.name, SnapshotFileRow.file_digest).where(named).limit(1)
    ).one()
    refusals = {rule.digest: _refusal(rule, hit, event_id) for rule in session.execute(_in_time(hit))}
    taken = [snapshot for snapshot, refusal in refusals.items() if refusal is None]
    shares = session.scalars(_of_snapshots(SnapshotRow.holdout_share).where(named).distinct())
    reasons = sorted(refusal for refusal in refusals.values() if refusal) or ["no version has come to its time"]
    return Place(
        file=name,
        file_digest=digest,
        event_time=_instant(hit.event_us),
        label_time=_instant(hit.visible_us),
        held_out=all(_held_out(event_id, share) for share in shares),
        why_not=None if taken else _out_of_time(hit) or reasons[0],
        versions=_holders(session, taken, models),
    )


def _of_snapshots(*columns: Any) -> Any:
    """Of snapshots, and of the files that they name."""
    return select(*columns).join(SnapshotFileRow, SnapshotFileRow.snapshot_digest == SnapshotRow.digest)


def _in_time(hit: Hit) -> Any:
    """Rules of the snapshots that name the file and take rows of these times, as `Rule.by_time` has it."""
    rule = SnapshotRow
    return _of_snapshots(rule.digest, rule.split, rule.excluded, rule.holdout_share, rule.seed, rule.cut_off).where(
        SnapshotFileRow.index_digest == hit.index,
        rule.until_us > hit.visible_us,
        or_(~SnapshotFileRow.seen, rule.after_us.is_(None), rule.after_us <= hit.visible_us),
        or_(rule.start_us.is_(None), rule.start_us <= hit.event_us),
        or_(rule.end_us.is_(None), rule.end_us > hit.event_us),
    )


def _refusal(rule: Any, hit: Hit, event_id: str) -> str | None:
    """Why a snapshot does not take a row that is of its time; None if it does."""
    if rule.split != "all" and _held_out(event_id, rule.holdout_share) != (rule.split == "holdout"):
        return "held out"
    if any(low <= hit.event_us < high for low, high in rule.excluded):
        return "its time was excluded"
    if rule.cut_off is not None and _draw(event_id, rule.seed) > rule.cut_off:
        return "not in the sample that snapshot.max_rows allows"
    return None


@lru_cache
def _held_out(event_id: str, share: float) -> bool:
    return bool(is_held_out(pa.array([event_id]), share)[0])


@lru_cache
def _draw(event_id: str, seed: int) -> float:
    return float(hash_ids(pa.array([event_id]), salt=seed)[0])


def _out_of_time(hit: Hit) -> str | None:
    if _instant(hit.event_us) is None:
        return "it has no event time"
    return "it has no label" if hit.visible_us == NEVER else None


def _holders(session: Session, snapshots: Sequence[str], models: Collection[str] | None) -> tuple[Holder, ...]:
    if not snapshots:
        return ()
    trained = VersionRow.snapshot_digest.in_(snapshots)
    through = inherited(session, select(VersionRow.model, VersionRow.version).where(trained))
    aliases: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in session.scalars(select(AliasRow).order_by(AliasRow.alias)):
        aliases[row.model, row.version].append(row.alias)
    direct = set(snapshots)
    return tuple(
        Holder(
            model=model,
            version=version,
            snapshot=snapshot,
            through=None if snapshot in direct or base is None else ":".join(base),
            aliases=tuple(aliases.get((model, version), ())),
        )
        for (model, version, snapshot), base in through.items()
        if models is None or model in models
    )


def _instant(us: int) -> datetime | None:
    return from_us(us) if FIRST_US <= us < LAST_US else None
