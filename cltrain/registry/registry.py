"""Versions and aliases of one model: who came from whom, who serves, and who said so."""

from __future__ import annotations

import getpass
import importlib.metadata
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cltrain.errors import ConflictError, StoreError
from cltrain.records import Challenger, Json, Kind, ReportCard, Verdict, from_json, to_json
from cltrain.registry.store import Store
from cltrain.registry.tables import AliasMoveRow, AliasRow, SettingsRow, VersionRow
from cltrain.storage import digest_json

CHAMPION, PREVIOUS = "champion", "previous"
_PACKAGES = ("cltrain", "torch", "numpy", "pyarrow", "ray", "safetensors")


@dataclass(frozen=True, kw_only=True)
class VersionRecord:
    model: str
    version: str
    parent: str | None
    compared_to: str | None
    kind: Kind
    round_index: int
    reason: str
    state: str
    snapshot_digest: str
    weights_digest: str
    settings_digest: str
    seed: int
    code_commit: str | None
    created_at: datetime
    challenger: Challenger
    verdict: Verdict
    aliases: tuple[str, ...] = ()

    def summary(self) -> Json:
        """What `cltrain versions --json` prints for it."""
        value: Json = to_json(self)
        challenger = value.pop("challenger")
        kept = ("rows_trained", "rows_replayed", "steps", "seconds", "absorb_seconds", "loss", "parameters", "workers")
        for key in (*kept, "carried"):
            value[key] = challenger[key]
        value["snapshot_rows"] = challenger["snapshot"]["rows"]
        value["trained_until"] = challenger["cursor"]["until"]
        return value


class Registry:
    """All that is known of one `model` in a store. Every method is one transaction."""

    def __init__(self, store: Store, model: str) -> None:
        self.store, self.model = store, model

    def versions(self) -> list[VersionRecord]:
        """All versions, oldest first."""
        with self.store.reading() as session:
            aliases = self._aliases(session)
            rows = session.scalars(
                select(VersionRow).where(VersionRow.model == self.model).order_by(VersionRow.ordinal)
            )
            return [_record(row, aliases) for row in rows]

    def version(self, name: str) -> VersionRecord:
        """A version by its number or by an alias. Raises `StoreError` that names the versions there are."""
        with self.store.reading() as session:
            aliases = self._aliases(session)
            number = aliases[name].version if name in aliases else name.rsplit(":", 1)[-1]
            row = session.get(VersionRow, (self.model, number))
            if row is None:
                have = session.scalars(select(VersionRow.version).where(VersionRow.model == self.model)).all()
                raise StoreError(f"{self.model} has no version {name!r}; it has: {', '.join(have) or 'none yet'}")
            return _record(row, aliases)

    def champion(self) -> VersionRecord | None:
        with self.store.reading() as session:
            aliases = self._aliases(session)
            if CHAMPION not in aliases:
                return None
            row = session.get(VersionRow, (self.model, aliases[CHAMPION].version))
            assert row is not None
            return _record(row, aliases)

    def epoch(self) -> int:
        """Grows by one whenever what serves changes; 0 before there is a champion."""
        with self.store.reading() as session:
            return session.scalar(_epoch_query(self.model)) or 0

    def card(self, version: str) -> ReportCard:
        with self.store.reading() as session:
            row = session.get(VersionRow, (self.model, version))
            if row is None:
                raise StoreError(f"{self.model} has no version {version}")
            return from_json(ReportCard, row.card)

    def settings(self, version: str) -> Json:
        """The resolved settings that made a version."""
        with self.store.reading() as session:
            row = session.get(VersionRow, (self.model, version))
            found = session.get(SettingsRow, row.settings_digest) if row else None
            if found is None:
                raise StoreError(f"{self.model} has no version {version}")
            return found.settings

    def lineage(self, name: str) -> list[VersionRecord]:
        """The version and its ancestors, up to the stateless root, which comes last."""
        by_name = {v.version: v for v in self.versions()}
        chain = [self.version(name)]
        while chain[-1].parent is not None:
            chain.append(by_name[chain[-1].parent])
        return chain

    def register(
        self,
        challenger: Challenger,
        card: ReportCard,
        verdict: Verdict,
        *,
        round_index: int,
        reason: str,
        compared_to: str | None,
        settings: Json,
    ) -> VersionRecord:
        """Give the challenger its number. Registering the same round and kind again returns the version it got."""
        with self.store.writing() as session:
            known = session.scalars(
                select(VersionRow).where(
                    VersionRow.model == self.model,
                    VersionRow.round_index == round_index,
                    VersionRow.kind == challenger.kind,
                )
            ).first()
            if known is not None:
                return _record(known, self._aliases(session))
            parent = self._version_of_state(session, challenger.parent) if challenger.parent else None
            major, minor = self._next_number(session, parent if challenger.kind == "stateful" else None)
            digest = digest_json(settings)
            if session.get(SettingsRow, digest) is None:
                session.add(SettingsRow(digest=digest, settings=settings))
            row = VersionRow(
                model=self.model,
                version=f"{major}.{minor}",
                ordinal=session.scalar(select(func.count()).where(VersionRow.model == self.model)) or 0,
                major=major,
                minor=minor,
                parent=parent.version if parent else None,
                compared_to=compared_to,
                kind=challenger.kind,
                round_index=round_index,
                reason=reason,
                state=challenger.state,
                snapshot_digest=challenger.snapshot.digest,
                weights_digest=challenger.weights_digest,
                settings_digest=digest,
                seed=challenger.seed,
                code_commit=code_commit(),
                created_at=datetime.now(UTC),
                challenger=to_json(challenger),
                card=to_json(card),
                verdict=to_json(verdict),
                packages=package_versions(),
            )
            session.add(row)
            return _record(row, {})

    def promote(self, version: str, *, by: str | None = None, reason: str, expected: str | None = None) -> int:
        """Make `version` the champion and the old champion `previous`, in one transaction, and return the new epoch.

        Promoting the champion again changes nothing. With `expected`, raises `ConflictError` unless that is the
        champion now: somebody else was first.
        """
        with self.store.writing() as session:
            aliases = self._aliases(session)
            champion = aliases[CHAMPION].version if CHAMPION in aliases else None
            if expected is not None and champion not in (version, expected):
                raise ConflictError(
                    f"the champion of {self.model} is {champion}, not {expected}: somebody else moved it"
                )
            return self._promote(session, aliases, version, by, reason)

    def rollback(self, *, by: str | None = None, reason: str) -> tuple[str, int]:
        """Make `previous` the champion again; returns it and the new epoch. The next update continues from it."""
        with self.store.writing() as session:
            aliases = self._aliases(session)
            if PREVIOUS not in aliases:
                raise StoreError(f"{self.model} has no previous champion to go back to")
            previous = aliases[PREVIOUS].version
            return previous, self._promote(session, aliases, previous, by, reason)

    def moves(self) -> list[Json]:
        """Every move of every alias, oldest first."""
        with self.store.reading() as session:
            rows = session.scalars(
                select(AliasMoveRow).where(AliasMoveRow.model == self.model).order_by(AliasMoveRow.id)
            )
            names = ("alias", "old", "new", "epoch", "at", "by", "reason")
            return [{name: to_json(getattr(row, name)) for name in names} for row in rows]

    def _promote(
        self, session: Session, aliases: dict[str, AliasRow], version: str, by: str | None, reason: str
    ) -> int:
        if session.get(VersionRow, (self.model, version)) is None:
            raise StoreError(f"{self.model} has no version {version}: see `cltrain versions`")
        champion = aliases.get(CHAMPION)
        if champion is not None and champion.version == version:
            return champion.epoch
        epoch = (session.scalar(_epoch_query(self.model)) or 0) + 1
        if champion is not None:
            self._move(session, aliases, PREVIOUS, champion.version, epoch, by, reason)
        self._move(session, aliases, CHAMPION, version, epoch, by, reason)
        return epoch

    def _move(
        self,
        session: Session,
        aliases: dict[str, AliasRow],
        alias: str,
        new: str,
        epoch: int,
        by: str | None,
        reason: str,
    ) -> None:
        row = aliases.get(alias)
        old = row.version if row else None
        if row is None:
            session.add(AliasRow(model=self.model, alias=alias, version=new, epoch=epoch))
        else:
            row.version, row.epoch = new, epoch
        session.add(
            AliasMoveRow(
                model=self.model,
                alias=alias,
                old=old,
                new=new,
                epoch=epoch,
                at=datetime.now(UTC),
                by=by or getpass.getuser(),
                reason=reason[:500],
            )
        )

    def _aliases(self, session: Session) -> dict[str, AliasRow]:
        return {row.alias: row for row in session.scalars(select(AliasRow).where(AliasRow.model == self.model))}

    def _version_of_state(self, session: Session, state: str) -> VersionRow:
        found = session.scalars(
            select(VersionRow).where(VersionRow.model == self.model, VersionRow.state == state)
        ).first()
        if found is None:
            raise StoreError(f"the parent state {state} is no version of {self.model}")
        return found

    def _next_number(self, session: Session, parent: VersionRow | None) -> tuple[int, int]:
        here = VersionRow.model == self.model
        if parent is None:
            return (session.scalar(select(func.max(VersionRow.major)).where(here)) or 0) + 1, 0
        highest = session.scalar(select(func.max(VersionRow.minor)).where(here, VersionRow.major == parent.major))
        return parent.major, (highest or 0) + 1


def models(store: Store) -> list[str]:
    """Names of all models in a store, sorted."""
    with store.reading() as session:
        return sorted(session.scalars(select(VersionRow.model).distinct()))


def _epoch_query(model: str) -> Any:
    return select(func.max(AliasMoveRow.epoch)).where(AliasMoveRow.model == model)


def _record(row: VersionRow, aliases: dict[str, AliasRow]) -> VersionRecord:
    return VersionRecord(
        model=row.model,
        version=row.version,
        parent=row.parent,
        compared_to=row.compared_to,
        kind=row.kind,  # type: ignore[arg-type]
        round_index=row.round_index,
        reason=row.reason,
        state=row.state,
        snapshot_digest=row.snapshot_digest,
        weights_digest=row.weights_digest,
        settings_digest=row.settings_digest,
        seed=row.seed,
        code_commit=row.code_commit,
        created_at=row.created_at,
        challenger=from_json(Challenger, row.challenger),
        verdict=from_json(Verdict, row.verdict),
        aliases=tuple(sorted(name for name, alias in aliases.items() if alias.version == row.version)),
    )


@cache
def package_versions() -> dict[str, str | None]:
    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {name: version(name) for name in _PACKAGES}


@cache
def code_commit() -> str | None:
    """Commit of the code that runs, with `+` where the working tree differs; None outside a git checkout."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit = git("rev-parse", "HEAD")
        return commit and commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except OSError:
        return None
