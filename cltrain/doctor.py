"""Is the store what its record says? Every digest of every version, every name that the registry uses, and what lies
about that nothing names."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from sqlalchemy import select
from sqlalchemy.orm import Session

from cltrain.data.snapshot import read_rows
from cltrain.errors import StoreError
from cltrain.records import Json
from cltrain.registry import Store, audit
from cltrain.registry.rounds import DONE
from cltrain.registry.tables import AliasRow, SettingsRow, StageRow, VersionRow
from cltrain.reproduce import manifest_of
from cltrain.retention import QUARANTINE, References, bases_of, folders_of, is_part, references
from cltrain.storage import Storage, digest_json
from cltrain.train.state import base_name

_CACHED = re.compile(r"cache/[0-9a-f]{64}\.arrow")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """kind: missing, altered, dangling (a name that leads nowhere), orphan (files that nothing names), unfinished or
    audit. repaired: what was done about it; None where nothing was, and then `advice` says what to do."""

    kind: str
    subject: str
    message: str
    advice: str
    repaired: str | None = None


@dataclass(frozen=True, kw_only=True)
class Examination:
    """notes: what is unusual and right, such as a round that was interrupted and goes on."""

    versions: int
    blobs: int
    bytes: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        return all(problem.repaired for problem in self.problems)

    def to_json(self) -> Json:
        return {
            **vars(self),
            "problems": [vars(problem) for problem in self.problems],
            "notes": list(self.notes),
            "healthy": self.healthy,
        }


def examine(
    store: Store,
    *,
    models: Collection[str] | None = None,
    grace_s: float = 86_400.0,
    repair: bool = False,
    now: float | None = None,
) -> Examination:
    """Read every blob that a version of `models` (None: of all) has on record and compare digests; look for what is
    missing, altered or of no use. Files younger than `grace_s` seconds may be of a loop that runs, and are left alone.

    With `repair`, what nothing names is moved to `quarantine/`, and what can be made again, or was never finished, is
    deleted. What was lost or altered cannot be guessed: it stays a problem, with an advice.
    """
    before = (time.time() if now is None else now) - grace_s
    storage = store.storage
    with store.reading() as session:
        found = references(session)
        wanted = {n: r for n, r in found.versions.items() if models is None or r.model in models}
        rows: dict[str, Any] = {n: session.get(VersionRow, (r.model, r.version)) for n, r in wanted.items()}
        problems = [*_dangling(session, found, rows), *_audit(session)]
        notes = list(_notes(session))
    blobs = storage.infos("")
    states = folders_of(blobs)
    for name, row in rows.items():
        problems += _version(storage, name, row, name in found.collected, {b.name for b in states.get(row.state, [])})
    act = _Repair(storage, repair)
    problems += _orphans(storage, found, states, before, act)
    for blob in blobs:
        if blob.changed < before and is_part(blob):
            problems.append(act.delete(blob.name, "unfinished", "was never written to its end"))
    problems += _caches(storage, [b.name for b in blobs if _CACHED.fullmatch(b.name)], act)
    return Examination(
        versions=len(rows),
        blobs=len(blobs),
        bytes=sum(blob.size for blob in blobs),
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _version(storage: Storage, name: str, row: Any, collected: bool, files: set[str]) -> Iterator[Problem]:
    """Its manifest and its state against what the registry and `state.json` say."""
    restore = f"cltrain reproduce {row.version} --model {row.model} --restore makes it again; or restore a backup"
    try:
        manifest_of(storage, row.snapshot_digest)
    except StoreError as error:
        yield Problem(kind=_kind(error), subject=name, message=str(error), advice="restore it from a backup")
    if collected:
        if files:
            yield Problem(
                kind="unfinished",
                subject=name,
                message=f"{len(files)} file(s) of {row.state} are left of a version that was collected",
                advice="cltrain gc goes on with it",
            )
        return
    about_name = f"{row.state}/state.json"
    if about_name not in files:
        yield Problem(kind="missing", subject=name, message=f"{about_name} is not there", advice=restore)
        return
    try:
        about = storage.read_json(about_name)
        recorded = {f"{row.state}/{file}": digest for file, digest in about["files"].items()}
        weights = about["files"]["weights.safetensors"]
        weights = digest_json([about["base"], weights]) if "base" in about else weights
    except (StoreError, KeyError, TypeError) as error:
        yield Problem(kind="altered", subject=name, message=f"{about_name} cannot be read: {error!r}", advice=restore)
        return
    if weights != row.weights_digest:
        message = f"{about_name} names weights {weights[:12]}, on record are {row.weights_digest[:12]}"
        yield Problem(kind="altered", subject=name, message=message, advice=restore)
    if "base" in about:
        recorded[base_name(about["base"])] = about["base"]
    for file, digest in recorded.items():
        if not storage.exists(file):
            yield Problem(kind="missing", subject=name, message=f"{file} is not there", advice=restore)
        elif (actual := storage.digest(file)) != digest:
            message = f"{file} was altered: its digest is {actual[:12]}, on record is {digest[:12]}"
            yield Problem(kind="altered", subject=name, message=message, advice=restore)


def _dangling(session: Session, found: References, rows: dict[str, Any]) -> Iterator[Problem]:
    """Names in the registry that lead nowhere."""
    advice = "the database was changed by hand: restore it from a backup"
    for alias in session.scalars(select(AliasRow)):
        name = f"{alias.model}:{alias.version}"
        subject = f"{alias.model}:{alias.alias}"
        if name not in found.versions:
            yield Problem(kind="dangling", subject=subject, message=f"there is no version {name}", advice=advice)
        elif name in found.collected:
            yield Problem(
                kind="dangling",
                subject=subject,
                message=f"the files of {name} were collected",
                advice=f"cltrain reproduce {alias.version} --model {alias.model} --restore",
            )
    for name, row in rows.items():
        if row.parent is not None and f"{row.model}:{row.parent}" not in found.versions:
            yield Problem(kind="dangling", subject=name, message=f"its parent {row.parent} is gone", advice=advice)
        settings = session.get(SettingsRow, row.settings_digest)
        if settings is None:
            yield Problem(kind="dangling", subject=name, message="its settings are gone", advice=advice)
        elif digest_json(settings.settings) != row.settings_digest:
            yield Problem(kind="altered", subject=name, message="its settings were altered", advice=advice)


def _audit(session: Session) -> Iterator[Problem]:
    check = audit.verify(session)
    if not check.intact:
        yield Problem(
            kind="audit",
            subject=f"entry {check.broken}",
            message=str(check.why),
            advice="somebody changed the log: what follows this entry proves nothing",
        )


def _notes(session: Session) -> Iterator[str]:
    """Rounds that were interrupted, with the stage at which they go on."""
    last: dict[tuple[str, int], list[str]] = {}
    for row in session.scalars(select(StageRow).order_by(StageRow.at)):
        last.setdefault((row.model, row.round_index), []).append(row.stage)
    for (model, index), stages in last.items():
        if DONE not in stages:
            yield f"round {index} of {model} is not finished: the next start of the loop goes on after {stages[-1]!r}"


def _orphans(
    storage: Storage, found: References, states: dict[str, Any], before: float, act: _Repair
) -> Iterator[Problem]:
    """Folders of states, and bases of adapters, that neither a version nor an unfinished round names."""
    named = found.states() | found.under_way
    for state, files in states.items():
        if state in named or max(blob.changed for blob in files) >= before:
            continue
        whole = f"{state}/state.json" in {blob.name for blob in files}
        kind, message = ("orphan", "no version has it") if whole else ("unfinished", "was never written to its end")
        yield act.quarantine(state, [blob.name for blob in files], kind, message)
    bases = [b for b in storage.infos("bases") if b.changed < before and not is_part(b)]
    used = bases_of(storage, states) if bases else set()
    for blob in bases:
        if blob.name not in used:
            yield act.quarantine(blob.name, [blob.name], "orphan", "no adapter lies over it")


def _caches(storage: Storage, names: list[str], act: _Repair) -> Iterator[Problem]:
    """Decoded rows that cannot be read, or are not as many as the manifest says."""
    for name in names:
        digest = name.removeprefix("cache/").removesuffix(".arrow")
        try:
            rows = read_rows(storage, digest).num_rows
            manifest = f"snapshots/{digest}.json"
            expected = storage.read_json(manifest)["row_count"] if storage.exists(manifest) else rows
        except (OSError, pa.ArrowException, StoreError) as error:
            yield act.delete(name, "altered", f"cannot be read: {error}")
            continue
        if rows != expected:
            yield act.delete(name, "altered", f"holds {rows} rows, the snapshot has {expected}")


class _Repair:
    """Does it, or says that `--repair` would."""

    def __init__(self, storage: Storage, on: bool) -> None:
        self._storage, self._on = storage, on

    def delete(self, name: str, kind: str, message: str) -> Problem:
        return self._problem(name, kind, message, "deleted", lambda: self._storage.delete(name))

    def quarantine(self, subject: str, names: list[str], kind: str, message: str) -> Problem:
        def move() -> None:
            for name in names:
                self._storage.move(name, f"{QUARANTINE}/{name}")
            self._storage.prune(subject)

        return self._problem(subject, kind, message, f"moved to {QUARANTINE}/", move)

    def _problem(self, subject: str, kind: str, message: str, done: str, repair: Callable[[], None]) -> Problem:
        if self._on:
            repair()
        return Problem(
            kind=kind,
            subject=subject,
            message=message,
            advice="cltrain doctor --repair",
            repaired=done if self._on else None,
        )


def _kind(error: StoreError) -> str:
    return "missing" if type(error) is StoreError else "altered"
