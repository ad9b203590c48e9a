"""What a store keeps. Versions stay on record for ever; what goes is files: those of versions that nobody will serve,
continue or compare with, and those that can be made again."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from cltrain.errors import ConfigError
from cltrain.records import Json
from cltrain.registry import Store, audit
from cltrain.registry.rounds import DONE
from cltrain.registry.tables import (
    AliasMoveRow,
    AliasRow,
    AnnotationRow,
    ApprovalRow,
    DependencyRow,
    DeploymentRow,
    StageRow,
    VersionRow,
)
from cltrain.storage import BlobInfo, Storage, digest_json
from cltrain.train.state import base_name

COLLECTED = "collected"  # the tag of a version whose files are gone
QUARANTINE = "quarantine"
PART = re.compile(r"\..+\.[0-9a-f]{32}")  # what a blob is called while it is written
STATE = re.compile(r"states/[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Retention:
    """keep_last: of each model the newest versions are kept whatever came of them. grace_s: seconds for which no file
    is touched, as a loop may be about to put it on record."""

    keep_last: int = 10
    grace_s: float = 86_400.0

    def __post_init__(self) -> None:
        if self.keep_last < 0:
            raise ConfigError(f"--keep-last must be 0 or more, not {self.keep_last}")
        if self.grace_s < 0:
            raise ConfigError(f"--grace must be 0 or more, not {self.grace_s}")


class Garbage(NamedTuple):
    name: str
    bytes: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Collected:
    """kept: versions, as `model:version`, with the reason. versions: those whose files go. blobs: the files that go."""

    dry_run: bool
    kept: Json
    versions: tuple[str, ...]
    blobs: tuple[Garbage, ...]

    @property
    def bytes(self) -> int:
        return sum(blob.bytes for blob in self.blobs)

    def to_json(self) -> Json:
        blobs = [blob._asdict() for blob in self.blobs]
        return {**vars(self), "versions": list(self.versions), "blobs": blobs, "bytes": self.bytes}


@dataclass(frozen=True, kw_only=True)
class References:
    """What the registry names, of all models. versions: rows by `model:version`. collected: those whose files are gone.
    under_way: every text in what the rounds that are not finished have on record. held_out: digests of the snapshots
    that the next round weighs on."""

    versions: dict[str, Any]
    collected: frozenset[str]
    under_way: frozenset[str]
    held_out: frozenset[str]

    def states(self, versions: Collection[str] | None = None) -> set[str]:
        """Folders of states, of these versions or of all."""
        return {row.state for name, row in self.versions.items() if versions is None or name in versions}


def collect(
    store: Store,
    retention: Retention,
    *,
    models: Collection[str] | None = None,
    dry_run: bool = False,
    by: str | None = None,
    now: float | None = None,
) -> Collected:
    """Delete the files that nothing needs any more; with `dry_run` only say which.

    Kept are: every version with an alias or a part in the deployment, every one that was ever champion (late labels are
    scored by the champion of their moment, and one may go back to it), the last `keep_last`, what an unfinished round
    or an approval waits for, what other models were trained with, and the parent of each of these, from which it is
    reproduced. Versions are marked in the transaction that decides, and their files go after it: what was interrupted
    goes on the next time.
    """
    now = time.time() if now is None else now
    with (store.reading if dry_run else store.writing)() as session:
        found = references(session)
        kept = dict(_kept(session, found, retention, now, models))
        dropped = [name for name in found.versions if name not in kept and name not in found.collected]
        if not dry_run:
            for name in dropped:
                _mark(session, found.versions[name], by)
    blobs = tuple(_garbage(store.storage, found, kept, now - retention.grace_s))
    if not dry_run:
        for blob in blobs:
            store.storage.delete(blob.name)
        for folder in {blob.name.rsplit("/", 1)[0] for blob in blobs if blob.name.count("/") > 1}:
            store.storage.prune(folder)
    return Collected(dry_run=dry_run, kept=kept, versions=tuple(dropped), blobs=blobs)


def references(session: Session) -> References:
    columns = (VersionRow.model, VersionRow.version, VersionRow.parent, VersionRow.state, VersionRow.created_at)
    rows = session.execute(select(*columns).order_by(VersionRow.model, VersionRow.ordinal)).all()
    marks = select(AnnotationRow).where(AnnotationRow.key == COLLECTED).order_by(AnnotationRow.id)
    marked = {f"{row.model}:{row.version}": row.value for row in session.scalars(marks)}
    done = {(row.model, row.round_index): row.record for row in session.scalars(_stages(DONE))}
    under_way: set[str] = set()
    for row in session.scalars(select(StageRow)):
        if (row.model, row.round_index) not in done:
            under_way |= set(_texts(row.record))
    return References(
        versions={f"{row.model}:{row.version}": row for row in rows},
        collected=frozenset(name for name, value in marked.items() if value is not None),
        under_way=frozenset(under_way),
        held_out=frozenset(
            record["observation"]["holdout"]["digest"]
            for record in done.values()
            if record and record["status"] != "quarantined"
        ),
    )


def garbage_of(storage: Storage, folder: str, why: str) -> Iterator[Garbage]:
    """All files of a state, the one that makes it a state first."""
    found = storage.infos(folder)
    for blob in sorted(found, key=lambda blob: not blob.name.endswith("/state.json")):
        yield Garbage(blob.name, blob.size, why)


def is_part(blob: BlobInfo) -> bool:
    return PART.fullmatch(blob.name.rsplit("/", 1)[-1]) is not None


def folders_of(blobs: list[BlobInfo]) -> dict[str, list[BlobInfo]]:
    """Files of states by their folder."""
    found: dict[str, list[BlobInfo]] = {}
    for blob in blobs:
        if match := STATE.match(blob.name):
            found.setdefault(match.group(), []).append(blob)
    return found


def bases_of(storage: Storage, states: Collection[str]) -> set[str]:
    """Names of the weights under the adapters of these states."""
    abouts = (storage.read_json(f"{state}/state.json") for state in states if storage.exists(f"{state}/state.json"))
    return {base_name(about["base"]) for about in abouts if "base" in about}


def _kept(
    session: Session, found: References, retention: Retention, now: float, models: Collection[str] | None
) -> Iterator[tuple[str, str]]:
    reasons = dict(_reasons(session, found, retention, now, models))
    for name in list(reasons):
        row = found.versions.get(name)
        if row is not None and row.parent is not None:
            reasons.setdefault(f"{row.model}:{row.parent}", f"the parent of {row.version}")
    for on in session.scalars(select(DependencyRow)):
        if f"{on.model}:{on.version}" in reasons:
            reasons.setdefault(f"{on.on_model}:{on.on_version}", f"{on.model}:{on.version} was trained with it")
    return ((name, why) for name, why in reasons.items() if name in found.versions)


def _reasons(
    session: Session, found: References, retention: Retention, now: float, models: Collection[str] | None
) -> Iterator[tuple[str, str]]:
    """Why a version is kept, the weakest reason first: of two the later one is told."""
    by_model: dict[str, list[str]] = {}
    for name, row in found.versions.items():
        by_model.setdefault(row.model, []).append(name)
        if models is not None and row.model not in models:
            yield name, "of another model"
        if row.created_at.timestamp() > now - retention.grace_s:
            yield name, "young"
        if row.state in found.under_way or row.version in found.under_way:
            yield name, "of a round that is not finished"
    for names in by_model.values():
        for name in names[len(names) - min(retention.keep_last, len(names)) :]:
            yield name, f"of the last {retention.keep_last}"
    for row in session.scalars(select(ApprovalRow).where(ApprovalRow.state == "awaiting")):
        yield f"{row.model}:{row.version}", "awaits approval"
    for row in session.scalars(select(AliasMoveRow).where(AliasMoveRow.alias == "champion")):
        yield f"{row.model}:{row.new}", "was champion"
    for row in session.scalars(select(DeploymentRow).order_by(DeploymentRow.epoch.desc())):
        if by_model.pop(row.model, None) is not None:  # the last one of each model holds
            for role, version in row.record["roles"].items():
                yield f"{row.model}:{version}", f"deployed as {role}"
    for row in session.scalars(select(AliasRow)):
        yield f"{row.model}:{row.version}", row.alias


def _garbage(storage: Storage, found: References, kept: Collection[str], before: float) -> Iterator[Garbage]:
    blobs = storage.infos("")
    states = folders_of(blobs)
    wanted = found.states(kept) | found.under_way
    of_versions = found.states()
    gone: set[str] = set()
    for state, files in states.items():
        old = max(blob.changed for blob in files) < before
        if state not in wanted and (old or state in of_versions):
            gone.add(state)
            yield from garbage_of(storage, state, "of a version" if state in of_versions else "of no version")
    bases = [blob for blob in blobs if blob.name.startswith("bases/")]
    used = bases_of(storage, states.keys() - gone) if bases else set()
    needed = {f"cache/{digest}.arrow" for digest in found.under_way | found.held_out}
    ended = _ended_searches(storage) if any(blob.name.startswith("searches/") for blob in blobs) else set()
    for blob in blobs:
        top, match = blob.name.split("/")[0], STATE.match(blob.name)
        if blob.changed >= before or (match and match.group() in gone):
            continue
        if is_part(blob):
            yield Garbage(blob.name, blob.size, "never finished")
        elif top == "cache" and blob.name not in needed:
            yield Garbage(blob.name, blob.size, "decoded again when it is asked for")
        elif top == "bases" and blob.name not in used:
            yield Garbage(blob.name, blob.size, "under no adapter")
        elif top == "updates":
            yield Garbage(blob.name, blob.size, "of an update that was left off")
        elif top == "searches" and blob.name.rsplit("/", 1)[0] in ended:
            yield Garbage(blob.name, blob.size, "of a search that has ended")
        elif top == QUARANTINE:
            yield Garbage(blob.name, blob.size, "set aside")


def _ended_searches(storage: Storage) -> set[str]:
    """Folders of trials that are in the record of a search."""
    records = (storage.read_json(name) for name in storage.names("searches") if name.count("/") == 1)
    return {f"searches/{digest_json(record['work'])[:32]}" for record in records}


def _mark(session: Session, row: Any, by: str | None) -> None:
    about: Json = {"key": COLLECTED, "value": datetime.now(UTC).isoformat(timespec="seconds")}
    entry = audit.append(session, "collect", model=row.model, subject=row.version, by=by, details=about)
    session.add(AnnotationRow(model=row.model, version=row.version, at=entry.at, by=entry.by, **about))
    session.flush()


def _stages(stage: str) -> Any:
    return select(StageRow).where(StageRow.stage == stage)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
