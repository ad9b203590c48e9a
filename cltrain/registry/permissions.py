"""Where people have the last word on something else than a version: an update that a trigger asks for, or a version
that was stopped in traffic and is to be withdrawn. What was asked and answered is what the audit log says; there is no
other record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from cltrain.errors import ConfigError, ConflictError, StoreError
from cltrain.records import Json
from cltrain.registry import audit
from cltrain.registry.approvals import ApprovalState
from cltrain.registry.base import CHAMPION, OfModel
from cltrain.registry.tables import AnnotationRow, AuditRow, VersionStageRow
from cltrain.registry.versions import ROLLED_BACK, WITHDRAWN

RETRAIN, ROLL_BACK = "retrain/", "rollback/"  # what subjects begin with: the number of a round, the id of a roll-out
STATES: dict[str, ApprovalState] = {"approve": "approved", "reject": "rejected", "expire": "expired"}


@dataclass(frozen=True, kw_only=True)
class Permission:
    """subject: such as `retrain/12` or `rollback/canary-1.2-5`. why: what it is asked for. version: that is withdrawn
    if the subject is approved; None for an update. by, comment and answered_at are those of the answer. on_timeout:
    what no answer before `expires_at` is taken as."""

    model: str
    subject: str
    state: ApprovalState
    why: str
    version: str | None
    asked_at: datetime
    expires_at: datetime | None
    on_timeout: Literal["reject", "approve"]
    by: str | None = None
    comment: str | None = None
    answered_at: datetime | None = None


class Permissions(OfModel):
    def ask_for(
        self,
        subject: str,
        *,
        why: str,
        version: str | None = None,
        expires_at: datetime | None = None,
        on_timeout: Literal["reject", "approve"] = "reject",
        by: str | None = "loop",
    ) -> Permission:
        """Ask people about a subject. Asking again changes nothing."""
        if not is_subject(subject) or (version is None) != subject.startswith(RETRAIN):
            raise ConfigError(
                f"one asks for {RETRAIN}ROUND, or for {ROLL_BACK}ID with its version, not for {subject!r}"
            )
        about: Json = {"why": why, "version": version, "on_timeout": on_timeout}
        about["expires_at"] = expires_at.astimezone(UTC).isoformat() if expires_at else None
        with self.store.writing() as session:
            if (found := self._permission(session, subject)) is None:
                self._append(session, "ask", subject, by, about)
                found = self._permission(session, subject)
            assert found is not None
            return found

    def permission(self, subject: str) -> Permission | None:
        """What was asked and answered about a subject; None where nobody was asked."""
        with self.store.reading() as session:
            return self._permission(session, subject)

    def permissions(self, state: ApprovalState | None = None) -> list[Permission]:
        """All of the model, or those in one state, by the time when they were asked for."""
        with self.store.reading() as session:
            return [p for p in self._permissions(session) if state is None or p.state == state]

    def permit(self, subject: str, by: str | None = None, comment: str = "") -> Permission:
        """Say yes: the update is made; the version is withdrawn, at once and for good. Saying it again changes nothing.
        Raises `ConflictError` after a no, when the time is over, and for a version that is champion by now."""
        with self.store.writing() as session:
            found = self._open(session, subject, "approved")
            if found.state == "awaiting":
                self._approve(session, found, by or audit.who(), comment)
                found = self._permission(session, subject) or found
            return found

    def refuse(self, subject: str, by: str | None = None, comment: str = "") -> Permission:
        """Say no: the update is not made; the version may be offered again. Saying it again changes nothing. Raises
        `ConflictError` after a yes and when the time is over."""
        with self.store.writing() as session:
            found = self._open(session, subject, "rejected")
            if found.state == "awaiting":
                self._append(session, "reject", subject, by or audit.who(), {"comment": comment})
                found = self._permission(session, subject) or found
            return found

    def settle(self, now: datetime | None = None) -> list[Permission]:
        """End the waiting for all whose time is over at `now`, and do what no answer is taken as; those that ended just
        now."""
        now = now or datetime.now(UTC)

        def due(session: Session) -> list[Permission]:
            found = self._permissions(session)
            return [p for p in found if p.state == "awaiting" and p.expires_at and p.expires_at <= now]

        with self.store.reading() as session:
            if not due(session):
                return []
        with self.store.writing() as session:
            over = due(session)
            for p in over:
                self._append(session, "expire", p.subject, "loop", {"expires_at": str(p.expires_at)})
                if p.on_timeout == "approve":
                    self._approve(session, p, "timeout", f"nobody answered before {p.expires_at}")
            return [found for p in over if (found := self._permission(session, p.subject))]

    def tell(self, subject: str, text: str, *, by: str | None = "loop") -> bool:
        """Put on record that people were told, once for each subject; whether it is new."""
        with self.store.writing() as session:
            here = (AuditRow.model == self.model, AuditRow.subject == subject, AuditRow.action == "notify")
            if session.scalars(select(AuditRow).where(*here)).first() is not None:
                return False
            self._append(session, "notify", subject, by, {"text": text})
            return True

    def _open(self, session: Session, subject: str, wanted: ApprovalState) -> Permission:
        found = self._permission(session, subject)
        if found is None:
            waiting = ", ".join(p.subject for p in self._permissions(session) if p.state == "awaiting")
            raise StoreError(f"nobody asked for {subject}; what awaits an answer: {waiting or 'nothing'}")
        if found.state == "awaiting" and found.expires_at and found.expires_at <= datetime.now(UTC):
            found = replace(found, state="expired")
        if found.state not in ("awaiting", wanted):
            said = f"by {found.by}: {found.comment or 'no comment'}" if found.by else f"at {found.expires_at}"
            raise ConflictError(f"{subject} is {found.state}, {said}")
        return found

    def _approve(self, session: Session, found: Permission, by: str, comment: str) -> None:
        aliases = self._aliases(session)
        if found.version is not None and CHAMPION in aliases and aliases[CHAMPION].version == found.version:
            if by == "timeout":
                return  # somebody promoted it meanwhile, which says more than no answer
            raise ConflictError(f"{self.model}:{found.version} is champion by now: to undo that, `cltrain rollback`")
        entry = self._append(session, "approve", found.subject, by, {"comment": comment, "version": found.version})
        if found.version is not None:
            said = {"model": self.model, "version": found.version, "at": entry.at, "by": entry.by}
            session.add(AnnotationRow(key=ROLLED_BACK, value=found.why, **said))
            evidence = {"reason": found.why, "approved": found.subject}
            session.add(VersionStageRow(stage=WITHDRAWN, evidence=evidence, **said))
            session.flush()

    def _append(self, session: Session, action: str, subject: str, by: str | None, details: Json) -> AuditRow:
        entry = audit.append(session, action, model=self.model, subject=subject, by=by, details=details)
        session.flush()
        return entry

    def _permission(self, session: Session, subject: str) -> Permission | None:
        here = (AuditRow.model == self.model, AuditRow.subject == subject)
        return next(iter(self._told(session.scalars(select(AuditRow).where(*here).order_by(AuditRow.id)))), None)

    def _permissions(self, session: Session) -> list[Permission]:
        ours = or_(AuditRow.subject.startswith(RETRAIN), AuditRow.subject.startswith(ROLL_BACK))
        query = select(AuditRow).where(AuditRow.model == self.model, ours)
        return self._told(session.scalars(query.order_by(AuditRow.id)))

    def _told(self, entries: Iterable[AuditRow]) -> list[Permission]:
        found: dict[str, Permission] = {}
        for entry in entries:
            subject, about = str(entry.subject), entry.details
            if entry.action == "ask":
                until = about["expires_at"]
                found[subject] = Permission(
                    model=self.model,
                    subject=subject,
                    state="awaiting",
                    why=about["why"],
                    version=about["version"],
                    asked_at=entry.at,
                    expires_at=datetime.fromisoformat(until) if until else None,
                    on_timeout=about["on_timeout"],
                )
            elif entry.action in STATES and subject in found:
                by = None if entry.action == "expire" else entry.by
                state, comment = STATES[entry.action], about.get("comment")
                found[subject] = replace(found[subject], state=state, by=by, comment=comment, answered_at=entry.at)
        return list(found.values())


def is_subject(name: str) -> bool:
    """Whether this is not the name of a version.

    >>> is_subject("retrain/12"), is_subject("rollback/canary-1.2-5"), is_subject("1.2")
    (True, True, False)
    """
    return name.startswith((RETRAIN, ROLL_BACK))
