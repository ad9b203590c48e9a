"""What the manifests of snapshots say, in the database: which files they name and which rows of them they take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import exists, insert, select
from sqlalchemy.orm import Session

from cltrain.records import Json
from cltrain.registry.segments import add_indexes
from cltrain.registry.store import Store
from cltrain.registry.tables import SnapshotFileRow, SnapshotRow, VersionRow


def unread(store: Store) -> list[str]:
    """Digests of the snapshots of all versions whose manifests are not in the database yet."""
    with store.reading() as session:
        known = exists().where(SnapshotRow.digest == VersionRow.snapshot_digest)
        return sorted(session.scalars(select(VersionRow.snapshot_digest).distinct().where(~known)))


def index_snapshots(store: Store, digests: Iterable[str]) -> None:
    """Note what the manifests of these snapshots say; of those that are not there nothing is noted."""
    found = {digest: store.storage.read_json(name) for digest in digests if store.storage.exists(name := _name(digest))}
    if not found:
        return
    with store.writing() as session:
        for digest, manifest in found.items():
            if session.get(SnapshotRow, digest) is None:
                session.add(SnapshotRow(digest=digest, **_rule(manifest)))
                session.flush()
                _add_files(session, digest, manifest)
    add_indexes(store, {name: file["rows"] for m in found.values() for name, file in _indexed(m)})


def _rule(manifest: Json) -> Json:
    rule = manifest["rule"]
    times = {f"{name}_us": rule[name] for name in ("until", "after", "start", "end")}
    same = {name: rule[name] for name in ("split", "excluded", "holdout_share", "seed")}
    return {**times, **same, "cut_off": manifest.get("cut_off")}


def _add_files(session: Session, digest: str, manifest: Json) -> None:
    seen = set(manifest["rule"]["seen"])
    index = {file["name"]: name for name, file in _indexed(manifest)}
    rows = [
        {"snapshot_digest": digest, "name": file["name"], "file_digest": file["digest"]}
        | {"seen": file["name"] in seen, "index_digest": index.get(file["name"])}
        for file in manifest["files"]
    ]
    if rows:
        session.execute(insert(SnapshotFileRow), rows)


def _indexed(manifest: Json) -> Iterable[tuple[str, Any]]:
    """Files of which there is an index, by its digest."""
    return zip(manifest["indexes"], manifest["files"], strict=True) if "indexes" in manifest else ()


def _name(digest: str) -> str:
    return f"snapshots/{digest}.json"
