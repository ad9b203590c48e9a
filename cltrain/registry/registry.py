"""Versions of one model: who came from whom, what they were made of, who serves, and who said so."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cltrain.errors import StoreError
from cltrain.records import Challenger, Json, ReportCard, Verdict, from_json, to_json
from cltrain.registry import audit
from cltrain.registry.aliases import Aliases
from cltrain.registry.ancestry import Ancestry
from cltrain.registry.annotations import Annotations
from cltrain.registry.approvals import Approvals
from cltrain.registry.base import CHALLENGER, CHAMPION, PREVIOUS
from cltrain.registry.permissions import Permissions
from cltrain.registry.snapshots import index_snapshots
from cltrain.registry.store import Store
from cltrain.registry.tables import DependencyRow, SettingsRow, VersionRow
from cltrain.registry.versions import VersionRecord, code_commit, package_versions
from cltrain.storage import digest_json

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "PREVIOUS",
    "Registry",
    "VersionRecord",
    "code_commit",
    "models",
    "package_versions",
]


class Registry(Aliases, Ancestry, Approvals, Permissions, Annotations):
    """All that is known of one `model` in a store. Every method is one transaction."""

    def versions(self, last: int | None = None, before: str | None = None) -> list[VersionRecord]:
        """Versions, oldest first: all, or the `last` ones, or the last ones that were made `before` one."""
        query = select(VersionRow).where(VersionRow.model == self.model).order_by(VersionRow.ordinal.desc()).limit(last)
        with self.store.reading() as session:
            if before is not None:
                query = query.where(VersionRow.ordinal < self._row(session, before).ordinal)
            return self._records(session, session.scalars(query).all()[::-1])

    def version(self, name: str) -> VersionRecord:
        """A version by its number or by an alias. Raises `StoreError` that names the versions there are."""
        with self.store.reading() as session:
            return self._record(session, self._row(session, name))

    def find(self, number: str) -> VersionRecord | None:
        """A version by its number alone; None where there is none."""
        with self.store.reading() as session:
            row = session.get(VersionRow, (self.model, number))
            return self._record(session, row) if row is not None else None

    def card(self, version: str) -> ReportCard:
        with self.store.reading() as session:
            return from_json(ReportCard, self._row(session, version).card)

    def packages(self, version: str) -> Json:
        """Versions of the packages that made a version; None for one that was not there."""
        with self.store.reading() as session:
            return self._row(session, version).packages

    def settings(self, version: str) -> Json:
        """The resolved settings that made a version."""
        with self.store.reading() as session:
            found = session.get(SettingsRow, self._row(session, version).settings_digest)
            assert found is not None
            return found.settings

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
        depends_on: Sequence[str] = (),
    ) -> VersionRecord:
        """Give the challenger its number. Registering the same round and kind again returns the version it got.

        depends_on: versions of other models that it was trained with, as `model:version`.
        """
        with self.store.writing() as session:
            known = session.scalars(
                select(VersionRow).where(
                    VersionRow.model == self.model,
                    VersionRow.round_index == round_index,
                    VersionRow.kind == challenger.kind,
                )
            ).first()
            if known is not None:
                return self._record(session, known)
            parent = self._version_of_state(session, challenger.parent) if challenger.parent else None
            major, minor = self._next_number(session, parent if challenger.kind == "stateful" else None)
            version, digest = f"{major}.{minor}", digest_json(settings)
            about = {
                "parent": parent.version if parent else None,
                "accepted": verdict.accepted,
                "weights_digest": challenger.weights_digest,
                "snapshot_digest": challenger.snapshot.digest,
                "settings_digest": digest,
                "depends_on": list(depends_on),
            }
            entry = audit.append(session, "register", model=self.model, subject=version, by="loop", details=about)
            if session.get(SettingsRow, digest) is None:
                session.add(SettingsRow(digest=digest, settings=settings))
            last = session.scalar(select(func.max(VersionRow.ordinal)).where(VersionRow.model == self.model))
            row = VersionRow(
                model=self.model,
                version=version,
                ordinal=0 if last is None else last + 1,
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
                created_at=entry.at,
                challenger=to_json(challenger),
                card=to_json(card),
                verdict=to_json(verdict),
                packages=package_versions(),
            )
            session.add(row)
            session.flush()
            for name in depends_on:
                session.add(self._dependency(session, version, name))
            session.flush()
            record = self._record(session, row)
        index_snapshots(self.store, [record.snapshot_digest])
        return record

    def audit_log(self, last: int | None = None) -> list[Json]:
        """Entries of the audit log on this model, oldest first: id, at, by, action, subject, details and digests."""
        with self.store.reading() as session:
            return audit.entries(session, [self.model], last)

    def log(self, action: str, subject: str | None = None, *, by: str | None = None, **details: object) -> None:
        """Put on record what was done to the store beside its versions, such as `gc` and `export`."""
        with self.store.writing() as session:
            audit.append(session, action, model=self.model, subject=subject, by=by, details=details)

    def verify_audit(self, head: str | None = None) -> audit.AuditCheck:
        """Check the audit log of the whole store: the first entry that was altered or is missing, if there is one."""
        with self.store.reading() as session:
            return audit.verify(session, head)

    def _dependency(self, session: Session, version: str, name: str) -> DependencyRow:
        model, _, number = name.partition(":")
        if model == self.model or session.get(VersionRow, (model, number)) is None:
            raise StoreError(f"{self.model}:{version} depends on {name!r}, which is no version of another model")
        return DependencyRow(model=self.model, version=version, on_model=model, on_version=number)

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
