"""Where people have the last word: who was asked about a version, who signed, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from cltrain.errors import ConfigError, ConflictError
from cltrain.registry import audit
from cltrain.registry.base import OfModel
from cltrain.registry.tables import ApprovalRow, SignOffRow

ApprovalState = Literal["awaiting", "approved", "rejected", "expired"]


@dataclass(frozen=True, kw_only=True)
class SignOff:
    by: str
    role: str | None
    comment: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Approval:
    """by, comment and answered_at are those of the last answer. roles: who may sign, by role; anybody where it is
    empty. needed: how many must. expires_at: when no answer is an answer too."""

    model: str
    version: str
    state: ApprovalState
    asked_at: datetime
    expires_at: datetime | None
    roles: tuple[str, ...]
    needed: int
    by: str | None
    comment: str | None
    answered_at: datetime | None
    signed: tuple[SignOff, ...]

    @property
    def missing(self) -> str:
        """What is still to come, as one reads it; empty if nothing is."""
        left = self.needed - len(self.signed)
        if self.state != "awaiting" or left <= 0:
            return ""
        open_roles = [role for role in self.roles if role not in {s.role for s in self.signed}]
        return f"{left} of {', '.join(open_roles)}" if open_roles else f"{left} more"


class Approvals(OfModel):
    def ask(
        self,
        version: str,
        *,
        expires_at: datetime | None = None,
        roles: Sequence[str] = (),
        needed: int | None = None,
        by: str | None = "loop",
    ) -> Approval:
        """Ask people about a version. Asking again changes nothing, with two exceptions: who must sign may have become
        stricter or looser, and what expired is open again if `expires_at` is later than it was.

        expires_at: an instant of the wall clock. roles: of which each may sign once. needed: how many must sign; all
        roles, or one person, where it is None.
        """
        needed = max(1, len(roles)) if needed is None else needed
        expires_at = expires_at.astimezone(UTC) if expires_at else None
        if needed < 1 or (roles and needed > len(roles)) or len(set(roles)) < len(roles):
            raise ConfigError(f"needed must be from 1 to the number of distinct roles, {len(set(roles))}, not {needed}")
        with self.store.writing() as session:
            number = self._row(session, version).version
            row = session.get(ApprovalRow, (self.model, number))
            if row is None:
                row = self._ask(session, number, roles, needed, expires_at, by)
            elif row.state == "expired" and expires_at and row.expires_at and expires_at > row.expires_at:
                row.state, row.expires_at, row.roles, row.needed = "awaiting", expires_at, list(roles), needed
                row.by = row.comment = row.answered_at = None
                self._log(session, "ask", number, by, again=True, expires_at=expires_at.isoformat())
            elif (row.roles, row.needed) != (list(roles), needed) and row.state in ("awaiting", "approved"):
                row.roles, row.needed = list(roles), needed
                row.state = "approved" if self._is_signed(session, row) else "awaiting"
                self._log(session, "ask", number, by, roles=list(roles), needed=needed, state=row.state)
            return self._approval(session, row)

    def approval(self, version: str) -> Approval | None:
        """What was asked and answered about a version; None where nobody was asked and nobody answered."""
        with self.store.reading() as session:
            row = session.get(ApprovalRow, (self.model, self._row(session, version).version))
            return self._approval(session, row) if row else None

    def approvals(self, state: ApprovalState | None = None) -> list[Approval]:
        """All of the model, or those in one state, by the time when they were asked for."""
        query = select(ApprovalRow).where(ApprovalRow.model == self.model)
        if state:
            query = query.where(ApprovalRow.state == state)
        with self.store.reading() as session:
            rows = session.scalars(query.order_by(ApprovalRow.asked_at, ApprovalRow.version)).all()
            return [self._approval(session, row) for row in rows]

    def approve(
        self, version: str, by: str | None = None, comment: str = "", *, role: str | None = None, override: bool = False
    ) -> Approval:
        """Sign for a version, whether one was asked or not. A person signs once; signing again changes nothing.

        Raises `ConflictError` for a version that people rejected; and, without `override`, for one that the gate
        rejected and for one whose time is over. An `override` stays on record. Raises `ConfigError` for a role that was
        not asked for.
        """
        by = by or audit.who()
        with self.store.writing() as session:
            found = self._row(session, version)
            number = found.version
            row = session.get(ApprovalRow, (self.model, number))
            if row is not None and row.state == "rejected":
                raise ConflictError(f"{self.model}:{number} was rejected by {row.by}: {row.comment or 'no comment'}")
            signed = self._signed(session, number)
            if row is not None and any(s.by == by and s.role == role for s in signed):
                return self._approval(session, row)
            if row is not None and self._is_over(row) and not override:
                raise ConflictError(f"{self.model}:{number} was to be approved before {row.expires_at}: --override")
            if not found.verdict["accepted"] and not override:
                reasons = "; ".join(found.verdict["reasons"])
                raise ConflictError(f"the gate rejected {self.model}:{number} ({reasons}): to approve it, --override")
            if row is None:
                row = self._ask(session, number, (), 1, None, by)
            self._check_role(row, signed, by, role)
            over = {"override": True} if override and (not found.verdict["accepted"] or self._is_over(row)) else {}
            at = self._log(session, "approve", number, by, comment=comment, role=role, **over)
            session.add(SignOffRow(model=self.model, version=number, by=by, role=role, comment=comment, at=at))
            row.by, row.comment, row.answered_at = by, comment, at
            row.state = "approved" if self._is_signed(session, row) else "awaiting"
            return self._approval(session, row)

    def reject(self, version: str, by: str | None = None, comment: str = "") -> Approval:
        """One person's no is enough, also after others have signed. Rejecting again changes nothing. Raises
        `ConflictError` for a version that is approved already."""
        by = by or audit.who()
        with self.store.writing() as session:
            number = self._row(session, version).version
            row = session.get(ApprovalRow, (self.model, number)) or self._ask(session, number, (), 1, None, by)
            if row.state == "approved":
                raise ConflictError(f"{self.model}:{number} was approved by {row.by}: to undo it, `cltrain rollback`")
            if row.state != "rejected":
                row.answered_at = self._log(session, "reject", number, by, comment=comment)
                row.state, row.by, row.comment = "rejected", by, comment
            return self._approval(session, row)

    def expire(self, now: datetime | None = None) -> list[Approval]:
        """End the waiting for all whose time is over at `now`; those that ended just now."""
        now = now or datetime.now(UTC)
        due = (ApprovalRow.model == self.model, ApprovalRow.state == "awaiting", ApprovalRow.expires_at <= now)
        with self.store.reading() as session:
            if session.scalars(select(ApprovalRow).where(*due)).first() is None:
                return []
        with self.store.writing() as session:
            rows = session.scalars(select(ApprovalRow).where(*due).order_by(ApprovalRow.asked_at)).all()
            for row in rows:
                row.state = "expired"
                row.answered_at = self._log(session, "expire", row.version, "loop", expires_at=str(row.expires_at))
            return [self._approval(session, row) for row in rows]

    def _ask(
        self,
        session: Session,
        number: str,
        roles: Sequence[str],
        needed: int,
        expires_at: datetime | None,
        by: str | None,
    ) -> ApprovalRow:
        until = expires_at.isoformat() if expires_at else None
        at = self._log(session, "ask", number, by, roles=list(roles), needed=needed, expires_at=until)
        row = ApprovalRow(
            model=self.model,
            version=number,
            state="awaiting",
            roles=list(roles),
            needed=needed,
            asked_at=at,
            expires_at=expires_at,
        )
        session.add(row)
        session.flush()
        return row

    def _log(self, session: Session, action: str, number: str, by: str | None, **details: object) -> datetime:
        return audit.append(session, action, model=self.model, subject=number, by=by, details=details).at

    def _is_over(self, row: ApprovalRow) -> bool:
        if row.state == "expired":
            return True
        return row.state == "awaiting" and row.expires_at is not None and row.expires_at <= datetime.now(UTC)

    def _check_role(self, row: ApprovalRow, signed: Sequence[SignOff], by: str, role: str | None) -> None:
        who = f"{self.model}:{row.version}"
        if row.roles and role not in row.roles:
            raise ConfigError(f"{who} is to be signed by {' and '.join(row.roles)}: pass --role with one of them")
        for sign in signed:
            if sign.by == by:
                raise ConflictError(f"{by} has signed {who} as {sign.role}: another person must sign as {role}")
            if role is not None and sign.role == role:
                raise ConflictError(f"{who} was signed by {sign.by} as {role}")

    def _is_signed(self, session: Session, row: ApprovalRow) -> bool:
        signed = self._signed(session, row.version)
        return len([s for s in signed if not row.roles or s.role in row.roles]) >= row.needed

    def _signed(self, session: Session, number: str) -> list[SignOff]:
        query = select(SignOffRow).where(SignOffRow.model == self.model, SignOffRow.version == number)
        rows = session.scalars(query.order_by(SignOffRow.at, SignOffRow.by))
        return [SignOff(by=row.by, role=row.role, comment=row.comment, at=row.at) for row in rows]

    def _approval(self, session: Session, row: ApprovalRow) -> Approval:
        return Approval(
            model=row.model,
            version=row.version,
            state=row.state,  # type: ignore[arg-type]
            asked_at=row.asked_at,
            expires_at=row.expires_at,
            roles=tuple(row.roles),
            needed=row.needed,
            by=row.by,
            comment=row.comment,
            answered_at=row.answered_at,
            signed=tuple(self._signed(session, row.version)),
        )
