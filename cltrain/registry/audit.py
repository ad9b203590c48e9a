"""Who did what, as a chain: each entry holds the digest of the one before it, so none can be altered, taken out or put
in between unseen. Whoever rewrites the whole chain, or cuts entries off its end together with what they report, is
found out by comparing with a digest that was kept elsewhere: `verify` takes it as `head`."""

from __future__ import annotations

import getpass
import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cltrain.records import Json, to_json
from cltrain.registry.tables import AliasMoveRow, AuditRow, VersionRow
from cltrain.storage import digest_json

GENESIS = "0" * 64  # what the first entry has before it
_FIELDS = ("id", "at", "by", "action", "model", "subject", "details", "previous", "digest")


@dataclass(frozen=True, kw_only=True)
class AuditCheck:
    """entries: how many there are; head: digest of the last one; broken: number of the first entry that is wrong or
    missing, and why. An empty log has the head `GENESIS`."""

    entries: int
    head: str
    broken: int | None = None
    why: str | None = None

    @property
    def intact(self) -> bool:
        return self.broken is None


def append(
    session: Session,
    action: str,
    *,
    model: str | None,
    subject: str | None,
    by: str | None,
    details: Json | None = None,
) -> AuditRow:
    """Write an entry in a transaction of writers. Its instant is never before that of the entry before it, whatever the
    clocks of two machines say; what else the transaction writes takes the same one."""
    last = session.scalars(select(AuditRow).order_by(AuditRow.id.desc()).limit(1)).first()
    now = datetime.now(UTC)
    entry = AuditRow(
        id=last.id + 1 if last else 1,
        at=max(now, last.at) if last else now,
        by=by or who(),
        action=action,
        model=model,
        subject=subject,
        details=_plain(details or {}),
        previous=last.digest if last else GENESIS,
    )
    entry.digest = _digest(entry)
    session.add(entry)
    return entry


def entries(session: Session, models: Collection[str] | None = None, last: int | None = None) -> list[Json]:
    """Entries on some models, or all there are, oldest first; only the `last` ones."""
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(last)
    if models is not None:
        query = query.where(AuditRow.model.in_(models))
    rows = reversed(session.scalars(query).all())
    return [{name: getattr(row, name) for name in _FIELDS} | {"at": row.at.isoformat()} for row in rows]


def verify(session: Session, head: str | None = None) -> AuditCheck:
    """Read the whole log and hold it against itself, against the moves of aliases and against the versions.

    With `head`, a digest from an earlier check, the log must still hold that entry.
    """
    moves: dict[int, list[Any]] = {}
    for move in session.scalars(select(AliasMoveRow).where(AliasMoveRow.entry.is_not(None)).order_by(AliasMoveRow.id)):
        moves.setdefault(move.entry or 0, []).append([move.model, move.alias, move.old, move.new, move.epoch])
    columns = select(VersionRow.model, VersionRow.version, VersionRow.weights_digest)
    weights = {(model, version): digest for model, version, digest in session.execute(columns)}
    previous, number = GENESIS, 0
    seen = head is None or head == GENESIS
    for row in session.scalars(select(AuditRow).order_by(AuditRow.id).execution_options(yield_per=1000)):
        why = _wrong(row, number + 1, previous)
        reported = [[row.model, *move] for move in row.details.get("moves", ())]
        if not why and reported != moves.pop(row.id, []):
            why = "the history of the aliases differs from what it reports"
        if not why and row.action == "register":
            found = weights.get((str(row.model), str(row.subject)), row.details["weights_digest"])
            if found != row.details["weights_digest"]:
                why = f"{row.model}:{row.subject} is no longer the version that it reports"
        if why:
            return AuditCheck(entries=number, head=previous, broken=number + 1, why=why)
        previous, number = row.digest, row.id
        seen = seen or previous == head
    if moves:
        why = f"it is missing: the history of the aliases names entry {min(moves)}"
        return AuditCheck(entries=number, head=previous, broken=number + 1, why=why)
    if not seen:
        return AuditCheck(entries=number, head=previous, broken=number + 1, why=f"the entry {head} is no longer there")
    return AuditCheck(entries=number, head=previous)


def who() -> str:
    """The user of this process; in a container that knows no name, its number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _wrong(row: AuditRow, number: int, previous: str) -> str | None:
    if row.id != number:
        return f"it is missing: the next one there is {row.id}"
    if row.previous != previous:
        return "it does not follow from the entry before it"
    if row.digest != _digest(row):
        return "it was altered"
    return None


def _plain(value: Any) -> Any:
    """JSON of which every number has one way to be written: one that is not finite is a word."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return to_json(value)


def _digest(row: AuditRow) -> str:
    value = {name: getattr(row, name) for name in _FIELDS if name != "digest"}
    return digest_json(value | {"at": row.at.isoformat()})
