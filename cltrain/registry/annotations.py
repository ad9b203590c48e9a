"""What people and the loop say of a version: tags, notes, and how far it has come, by evidence."""

from __future__ import annotations

from sqlalchemy import select

from cltrain.errors import ConfigError, ConflictError
from cltrain.records import Json, Verdict, to_json
from cltrain.registry import audit
from cltrain.registry.base import OfModel
from cltrain.registry.tables import AnnotationRow, VersionStageRow
from cltrain.registry.versions import CANDIDATE, PRODUCTION, VALIDATED

STAGES = (CANDIDATE, VALIDATED, PRODUCTION)


class Annotations(OfModel):
    def tag(self, version: str, key: str, value: str | None = "", *, by: str | None = None) -> None:
        """Give a version a tag, or take it away with None. What it has already changes nothing."""
        if not key or key.strip() != key:
            raise ConfigError(f"a tag needs a name without spaces around it, not {key!r}")
        with self.store.writing() as session:
            row = self._row(session, version)
            if self._record(session, row).tags.get(key) == value:
                return
            about: Json = {"key": key, "value": value}
            entry = audit.append(session, "tag", model=self.model, subject=row.version, by=by, details=about)
            session.add(AnnotationRow(model=self.model, version=row.version, at=entry.at, by=entry.by, **about))

    def note(self, version: str, text: str, *, by: str | None = None) -> None:
        """Add a remark; it stays."""
        if not text.strip():
            raise ConfigError("a note needs a text")
        with self.store.writing() as session:
            number = self._row(session, version).version
            entry = audit.append(session, "note", model=self.model, subject=number, by=by, details={"text": text})
            said = {"key": None, "value": text, "at": entry.at, "by": entry.by}
            session.add(AnnotationRow(model=self.model, version=number, **said))

    def notes(self, version: str) -> list[Json]:
        """Remarks on a version, oldest first: text, at and by."""
        with self.store.reading() as session:
            number = self._row(session, version).version
            here = (AnnotationRow.model == self.model, AnnotationRow.version == number, AnnotationRow.key.is_(None))
            rows = session.scalars(select(AnnotationRow).where(*here).order_by(AnnotationRow.id))
            return [{"text": row.value, "at": to_json(row.at), "by": row.by} for row in rows]

    def advance(self, version: str, stage: str, evidence: Verdict | None = None, *, by: str | None = None) -> None:
        """Bring a version to a stage, with the evidence; being there already changes nothing.

        *validated* rests on an accepted verdict of the gate, or on an approval, and needs nothing more.
        *production-validated* rests on being validated and on `evidence`, an accepted verdict on live traffic. Raises
        `ConflictError` without them. Nobody brings a version back: `rollback` does, to *withdrawn*.
        """
        if stage not in STAGES:
            raise ConfigError(f"a stage is one of {', '.join(STAGES)}, not {stage!r}")
        with self.store.writing() as session:
            row = self._row(session, version)
            found = self._record(session, row)
            if found.stage == stage:
                return
            if found.stage not in STAGES or STAGES.index(found.stage) > STAGES.index(stage):
                raise ConflictError(f"{found.name} is {found.stage}: it does not go to {stage}")
            if found.stage == CANDIDATE:
                raise ConflictError(
                    f"{found.name} is not {VALIDATED}: its verdict is a rejection, and nobody approved it"
                )
            if evidence is None or not evidence.accepted:
                reasons = "; ".join(evidence.reasons) if evidence else "none is there"
                raise ConflictError(f"{found.name} needs a passed report on live traffic to be {stage}: {reasons}")
            about: Json = {"stage": stage, "evidence": to_json(evidence)}
            entry = audit.append(session, "stage", model=self.model, subject=row.version, by=by, details=about)
            said = {"at": entry.at, "by": entry.by, **about}
            session.add(VersionStageRow(model=self.model, version=row.version, **said))
