"""Names that move from version to version: the champion, the one before it, and those that want to be.

`champion` and `previous` move together, by `promote` and `rollback`. Challengers are named `challenger`, `challenger-2`
and so on, each with the lowest number that is free. Any other name is free to use with `move`.
"""

from __future__ import annotations

import itertools
import re
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cltrain.errors import ConflictError, StoreError
from cltrain.records import Json, to_json
from cltrain.registry import audit
from cltrain.registry.base import CHALLENGER, CHAMPION, PREVIOUS, OfModel
from cltrain.registry.tables import (
    AliasMoveRow,
    AliasRow,
    AnnotationRow,
    ApprovalRow,
    AuditRow,
    DeploymentRow,
    VersionStageRow,
)
from cltrain.registry.versions import ROLLED_BACK, WITHDRAWN, VersionRecord

ANY = "*"  # whatever the alias names now
_CHALLENGER = re.compile(rf"{CHALLENGER}(-\d+)?")
_NAME = re.compile(r"[a-z][a-z0-9_.-]*")


class Aliases(OfModel):
    def champion(self) -> VersionRecord | None:
        with self.store.reading() as session:
            alias = session.get(AliasRow, (self.model, CHAMPION))
            return self._record(session, self._row(session, alias.version)) if alias else None

    def epoch(self) -> int:
        """Grows by one whenever there is a new champion; 0 before there is one."""
        with self.store.reading() as session:
            return self._epoch(session)

    def promote(
        self,
        version: str,
        *,
        by: str | None = None,
        reason: str,
        expected: str | None = None,
        override: bool = False,
    ) -> int:
        """Make `version` the champion and the old champion `previous`, in one transaction, and return the new epoch.

        Promoting the champion again changes nothing. With `expected`, raises `ConflictError` unless that is the
        champion now: somebody else was first. So does a version that people were asked about and have not approved,
        unless `override`, which stays on record.
        """
        with self.store.writing() as session:
            number, aliases = self._row(session, version).version, self._aliases(session)
            now = aliases[CHAMPION].version if CHAMPION in aliases else None
            if now == number:
                return self._epoch(session)
            if expected is not None and now != expected:
                raise ConflictError(f"the champion of {self.model} is {now}, not {expected}: somebody else moved it")
            asked = session.get(ApprovalRow, (self.model, number))
            if asked is not None and asked.state != "approved" and not override:
                raise ConflictError(f"{self.model}:{number} is not approved but {asked.state}: see `cltrain approve`")
            details = {"override": asked.state} if asked is not None and asked.state != "approved" else {}
            return self._promote(session, aliases, number, by, reason, details=details)

    def rollback(self, *, by: str | None = None, reason: str, automatic: bool = False) -> tuple[str, int]:
        """Make `previous` the champion again; returns it and the new epoch. The next update continues from it.

        The version that is left gets the tag `rolled_back` with the reason and the stage *withdrawn*, until somebody
        promotes it again. An `automatic` rollback never goes to a version with that tag, but to the latest champion
        before it. Raises `StoreError` where there is none to go back to.
        """
        with self.store.writing() as session:
            aliases = self._aliases(session)
            if PREVIOUS not in aliases:
                raise StoreError(f"{self.model} has no previous champion to go back to")
            left = aliases[CHAMPION].version
            target = self._last_good(session, left) if automatic else aliases[PREVIOUS].version
            epoch = self._promote(session, aliases, target, by, reason, "rollback", {"left": left})
            entry = session.scalars(select(AuditRow).order_by(AuditRow.id.desc()).limit(1)).one()
            self._mark_rolled_back(session, entry, left, reason)
            return target, epoch

    def move(
        self, alias: str, version: str | None, *, by: str | None = None, reason: str, expected: str | None = ANY
    ) -> None:
        """Let `alias` name `version`, or nothing. Raises `ConflictError` unless it names `expected` now: a version, or
        None for nothing, or by default anything."""
        if alias in (CHAMPION, PREVIOUS):
            raise StoreError(f"{alias} moves by promote and rollback alone")
        if not _NAME.fullmatch(alias):
            raise StoreError(
                f"an alias is of small letters, digits, dots, - and _, and starts with a letter: {alias!r}"
            )
        with self.store.writing() as session:
            new = self._row(session, version).version if version is not None else None
            row = session.get(AliasRow, (self.model, alias))
            old = row.version if row else None
            if expected not in (ANY, old):
                raise ConflictError(f"{alias} of {self.model} is {old}, not {expected}: somebody else moved it")
            if old != new:
                self._write(session, "alias", new or old, {alias: new}, self._epoch(session), by, reason)

    def challenge(self, version: str, *, by: str | None = None, reason: str = "wants to be champion") -> str:
        """Make a version a challenger, beside others, and return its alias. One that is a challenger keeps its own."""
        with self.store.writing() as session:
            number = self._row(session, version).version
            taken = {
                alias: row.version for alias, row in self._aliases(session).items() if _CHALLENGER.fullmatch(alias)
            }
            for alias, holder in taken.items():
                if holder == number:
                    return alias
            names = itertools.chain([CHALLENGER], (f"{CHALLENGER}-{i}" for i in itertools.count(2)))
            alias = next(name for name in names if name not in taken)
            self._write(session, "challenge", number, {alias: number}, self._epoch(session), by, reason)
            return alias

    def withdraw(self, version: str, *, by: str | None = None, reason: str) -> None:
        """A challenger is none any longer; of other versions nothing changes."""
        with self.store.writing() as session:
            number = self._row(session, version).version
            moves = _challenges(self._aliases(session), number)
            if moves:
                self._write(session, "withdraw", number, moves, self._epoch(session), by, reason)

    def challengers(self) -> list[VersionRecord]:
        """In the order of their aliases."""
        with self.store.reading() as session:
            found = [row for alias, row in self._aliases(session).items() if _CHALLENGER.fullmatch(alias)]
            found.sort(key=lambda row: (len(row.alias), row.alias))
            return self._records(session, [self._row(session, row.version) for row in found])

    def moves(self) -> list[Json]:
        """Every move of every alias, oldest first."""
        with self.store.reading() as session:
            rows = session.scalars(
                select(AliasMoveRow).where(AliasMoveRow.model == self.model).order_by(AliasMoveRow.id)
            )
            names = ("alias", "old", "new", "epoch", "at", "by", "reason")
            return [{name: to_json(getattr(row, name)) for name in names} for row in rows]

    def champion_at(self, instant: datetime) -> str | None:
        """Number of the version that was champion then; known even of versions that are no longer there."""
        with self.store.reading() as session:
            before = self._crowned().where(AliasMoveRow.at <= instant).order_by(AliasMoveRow.id.desc()).limit(1)
            move = session.scalars(before).first()
            return move.new if move else None

    def served(self, version: str | None = None) -> list[Json]:
        """When which version was champion, oldest first: `version`, `epoch`, `start` and `end`, which is None for the
        champion of now. Only the times of `version` where it is given."""
        with self.store.reading() as session:
            moves = session.scalars(self._crowned().order_by(AliasMoveRow.id)).all()
            ends: list[Any] = [*(to_json(move.at) for move in moves[1:]), None]
            times = [
                {"version": move.new, "epoch": move.epoch, "start": to_json(move.at), "end": end}
                for move, end in zip(moves, ends, strict=False)
            ]
            return [time for time in times if version in (None, time["version"])]

    def _crowned(self) -> Any:
        return select(AliasMoveRow).where(AliasMoveRow.model == self.model, AliasMoveRow.alias == CHAMPION)

    def _promote(
        self,
        session: Session,
        aliases: dict[str, AliasRow],
        version: str,
        by: str | None,
        reason: str,
        action: str = "promote",
        details: Json | None = None,
    ) -> int:
        """The epoch that the new champion gets comes after those of all deployments too."""
        number = self._row(session, version).version
        champion = aliases.get(CHAMPION)
        if champion is not None and champion.version == number:
            return champion.epoch
        deployed = session.scalar(select(func.max(DeploymentRow.epoch)).where(DeploymentRow.model == self.model))
        epoch = max(champion.epoch if champion else 0, deployed or 0) + 1
        moves: dict[str, str | None] = {PREVIOUS: champion.version} if champion else {}
        moves |= {CHAMPION: number} | _challenges(aliases, number)
        entry = self._write(session, action, number, moves, epoch, by, reason, details)
        marks = select(AnnotationRow.value).where(
            AnnotationRow.model == self.model, AnnotationRow.version == number, AnnotationRow.key == ROLLED_BACK
        )
        if session.scalars(marks.order_by(AnnotationRow.id.desc()).limit(1)).first() is not None:
            said = {"model": self.model, "version": number, "at": entry.at, "by": entry.by}
            session.add(AnnotationRow(key=ROLLED_BACK, value=None, **said))
        return epoch

    def _mark_rolled_back(self, session: Session, entry: AuditRow, version: str, reason: str) -> None:
        said = {"model": self.model, "version": version, "at": entry.at, "by": entry.by}
        session.add(AnnotationRow(key=ROLLED_BACK, value=reason, **said))
        session.add(VersionStageRow(stage=WITHDRAWN, evidence={"reason": reason, "entry": entry.id}, **said))

    def _write(
        self,
        session: Session,
        action: str,
        subject: str | None,
        moves: dict[str, str | None],
        epoch: int,
        by: str | None,
        reason: str,
        details: Json | None = None,
    ) -> AuditRow:
        """Move aliases, and put it on record in the history and in the audit log."""
        aliases = self._aliases(session)
        reported = [[alias, aliases[alias].version if alias in aliases else None, new] for alias, new in moves.items()]
        about = {"moves": [[*move, epoch] for move in reported], "reason": reason, **(details or {})}
        entry = audit.append(session, action, model=self.model, subject=subject, by=by, details=about)
        for alias, old, new in reported:
            row = aliases.get(str(alias))
            if new is None:
                session.delete(row)
            elif row is None:
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
                    at=entry.at,
                    by=entry.by,
                    reason=reason[:500],
                    entry=entry.id,
                )
            )
        session.flush()  # one by one, so that the history has them in this order
        return entry

    def _last_good(self, session: Session, left: str) -> str:
        """The latest champion before this one that was not rolled back."""
        said = select(AnnotationRow.version, AnnotationRow.value).where(
            AnnotationRow.model == self.model, AnnotationRow.key == ROLLED_BACK
        )
        marks = {version: value for version, value in session.execute(said.order_by(AnnotationRow.id))}
        bad = {version for version, value in marks.items() if value is not None} | {left}
        for move in session.scalars(self._crowned().order_by(AliasMoveRow.id.desc())):
            if move.new not in bad:
                return str(move.new)
        raise StoreError(f"{self.model} has no previous champion to go back to that was not rolled back itself")


def _challenges(aliases: dict[str, AliasRow], number: str) -> dict[str, str | None]:
    """The moves by which a version is no longer a challenger."""
    return {name: None for name, row in aliases.items() if row.version == number and _CHALLENGER.fullmatch(name)}
