"""The desired state: which versions serve, in which roles, with which shares, and how far a roll-out has come.

Each commit adds one row and never changes one, so the rows are the history. Whoever serves converges to the last one.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cltrain.errors import ConfigError, ConflictError, StoreError
from cltrain.records import Json, from_json, to_json
from cltrain.registry import audit
from cltrain.registry.base import CHAMPION, PREVIOUS
from cltrain.registry.registry import Registry
from cltrain.registry.tables import AnnotationRow, ApprovalRow, DeploymentRow, VersionRow, VersionStageRow
from cltrain.registry.versions import ROLLED_BACK, WITHDRAWN

SHADOW = "shadow"
STAGING = -1
ADAPTER = "policy"  # who commits what the policy layer learns
_NUMBER = re.compile("[1-9][0-9]{0,17}")
Status = Literal["running", "promoted", "rolled_back", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A roll-out as far as it has come: `version` against `champion`, at `step` since `since`.

    settings: of the roll-out, with the `_target_` that makes it again after a restart. step: -1 while replicas load the
    version, which has no traffic before all of them have it. evidence: what was seen when the step was decided.
    """

    id: str
    kind: str
    settings: Json
    version: str
    champion: str | None
    started_at: datetime
    since: datetime
    step: int = STAGING
    status: Status = "running"
    reason: str = ""
    evidence: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """roles: version by role; champion and previous are the registry's aliases, others such as challenger and shadow
    exist only here. shares: of units by role, champion first; they add up to 1. salt: of the assignment, one for each
    experiment. policy: version of the policy layer, which is the epoch that it came in with; document: what it says.
    epoch: grows by one with each change of what serves."""

    roles: Json
    shares: Json
    salt: str = ""
    policy: str | None = None
    document: Json = field(default_factory=dict)
    roll_out: Trial | None = None
    epoch: int = 0
    at: datetime | None = None
    by: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        if unknown := sorted(self.shares.keys() - self.roles.keys()):
            raise ConfigError(f"shares.{unknown[0]} is no role: the roles are {', '.join(self.roles)}")
        shares = self.shares.values()
        if self.shares and (min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-9)):
            raise ConfigError(f"shares must be 0 or more and add up to 1, not {self.shares}")

    @property
    def champion(self) -> str | None:
        return self.roles.get(CHAMPION)

    @property
    def running(self) -> Trial | None:
        return self.roll_out if self.roll_out and self.roll_out.status == "running" else None


class Deployments:
    """Desired states of the model of a registry. A store without any has what its aliases say: all traffic to the
    champion."""

    def __init__(self, registry: Registry) -> None:
        self._registry, self._model = registry, registry.model

    def epoch(self) -> int:
        """Grows by one with each commit and with each new champion; 0 before there is either."""
        with self._registry.store.reading() as session:
            return self._epoch(session)

    def current(self) -> Deployment:
        """One consistent look. A champion that was promoted or rolled back by hand after the last commit ends what was
        under way: it has all traffic."""
        with self._registry.store.reading() as session:
            return self._current(session)

    def commit(
        self, record: Deployment, *, expected_epoch: int, by: str | None = None, reason: str, action: str = "deploy"
    ) -> Deployment:
        """Make `record` the desired state, and return it with its epoch. In the same transaction the aliases move where
        it names another champion, and a version whose roll-out is rolled back is tagged so. Raises `ConflictError`
        unless the epoch is `expected_epoch`: somebody else was first."""
        with self._registry.store.writing() as session:
            if (epoch := self._epoch(session)) != expected_epoch:
                raise ConflictError(
                    f"{self._model} is deployed at epoch {epoch}, not {expected_epoch}: somebody else changed it"
                )
            now = self._current(session)
            self._require_fit(session, record, now)
            record = replace(record, epoch=epoch + 1, reason=reason[:500])
            if record.champion is not None and record.champion != now.champion:
                aliases = self._registry._aliases(session)
                self._registry._promote(session, aliases, record.champion, by, reason)
                roles = {CHAMPION: record.champion, **({PREVIOUS: now.champion} if now.champion else {})}
                record = replace(record, roles={**record.roles, **roles})
            trial = record.roll_out
            about: Json = {"roles": record.roles, "shares": record.shares, "epoch": record.epoch, "reason": reason}
            if record.policy != now.policy or record.document != now.document:
                about |= {"policy": record.policy, "document": record.document, "before": now.policy}
            subject = trial.version if trial and action == "deploy" else record.champion
            entry = audit.append(session, action, model=self._model, subject=subject, by=by, details=about)
            record = replace(record, at=entry.at, by=entry.by)
            if trial is not None and trial.status == "rolled_back" and now.running is not None:
                said = {"model": self._model, "version": trial.version, "at": entry.at, "by": entry.by}
                session.add(AnnotationRow(key=ROLLED_BACK, value=reason, **said))
                session.add(VersionStageRow(stage=WITHDRAWN, evidence={"reason": reason, "epoch": epoch + 1}, **said))
            session.add(
                DeploymentRow(
                    model=self._model,
                    epoch=record.epoch,
                    record=to_json(record),
                    at=entry.at,
                    by=entry.by,
                    reason=record.reason,
                )
            )
            return record

    def set_policy(
        self, document: Json, *, expected_epoch: int | None = None, by: str | None = None, reason: str
    ) -> Deployment:
        """Put a new document of the policy layer in force, whatever the model is; its version is the epoch that it
        comes in with, and its `parent` the version before it. Raises `ConflictError` as `commit` does, and where
        nothing serves yet."""
        now = self.current()
        self._require_champion(now)
        epoch = now.epoch if expected_epoch is None else expected_epoch
        version = str(epoch + 1)
        document = {**document, "version": version, "parent": now.policy, "reason": reason}
        record = replace(now, policy=version, document=document)
        return self.commit(record, expected_epoch=epoch, by=by, reason=reason, action="policy")

    def rollback_policy(
        self, version: str | None = None, *, expected_epoch: int | None = None, by: str | None = None, reason: str
    ) -> Deployment:
        """Put an earlier document back in force, or the parent of the present one, which is none at all for the first
        one. It is `held`: nothing adapts it until another is put in force. Raises `ConfigError` where there is none to
        go back to."""
        now = self.current()
        self._require_champion(now)
        if version is None:
            if now.policy is None:
                raise ConfigError(f"{self._model} has no policy in force to roll back")
            version = now.document.get("parent")
        document: Json = {} if version is None else self._policy(version)
        record = replace(now, policy=version, document={**document, "held": True})
        epoch = now.epoch if expected_epoch is None else expected_epoch
        return self.commit(record, expected_epoch=epoch, by=by, reason=reason, action="policy")

    def policies(self, last: int = 1000) -> list[Json]:
        """The documents that were in force in the last commits, oldest first, as they came in."""
        found: dict[str, Json] = {}
        for one in self.history(last):
            if one.policy is not None and one.document:
                found.setdefault(one.policy, one.document)
        return list(found.values())

    def _policy(self, version: str) -> Json:
        with self._registry.store.reading() as session:
            row = session.get(DeploymentRow, (self._model, int(version))) if _NUMBER.fullmatch(version) else None
            if row is not None and row.record.get("policy") == version:
                return dict(row.record["document"])
        known = ", ".join(one["version"] for one in self.policies()[-20:]) or "none yet"
        raise ConfigError(f"{self._model} has had no policy version {version!r}; it has had: {known}")

    def _history(self, session: Session, last: int, but_by: str | None) -> list[Deployment]:
        here = select(DeploymentRow).where(DeploymentRow.model == self._model)
        if but_by is not None:
            here = here.where(DeploymentRow.by != but_by)
        rows = session.scalars(here.order_by(DeploymentRow.epoch.desc()).limit(last)).all()
        return [from_json(Deployment, row.record) for row in reversed(rows)]

    def _require_champion(self, now: Deployment) -> None:
        if now.champion is None:
            raise ConflictError(f"{self._model} has no champion yet, so there is nothing to decide by")

    def history(self, last: int = 100, but_by: str | None = None) -> list[Deployment]:
        """The last commits, oldest first; without those of somebody who commits often."""
        with self._registry.store.reading() as session:
            return self._history(session, last, but_by)

    def trials(self, last: int = 1000) -> list[Trial]:
        """Roll-outs of the last commits as they ended, or as they stand, oldest first."""
        with self._registry.store.reading() as session:
            commits, running = self._history(session, last, ADAPTER), self._current(session).running
        found = {one.roll_out.id: one.roll_out for one in commits if one.roll_out is not None}
        return [
            replace(trial, status="stopped", reason="something else was promoted or rolled back meanwhile")
            if trial.status == "running" and (running is None or running.id != trial.id)
            else trial
            for trial in found.values()
        ]

    def refused(self, version: str) -> str | None:
        """Why a version was rolled back, so that it is not offered again; None if it was not, or was promoted since."""
        return self._registry.version(version).tags.get(ROLLED_BACK)

    def _require_fit(self, session: Session, record: Deployment, now: Deployment) -> None:
        known = {now.champion, now.roles.get(PREVIOUS)}
        for role, version in record.roles.items():
            if session.get(VersionRow, (self._model, version)) is None:
                raise StoreError(f"{self._model} has no version {version} to be {role}: see `cltrain versions`")
            asked = session.get(ApprovalRow, (self._model, version))
            if asked is not None and asked.state != "approved" and version not in known:
                raise ConflictError(f"{self._model}:{version} is not approved but {asked.state}: see `cltrain approve`")

    def _epoch(self, session: Session) -> int:
        last = select(func.max(DeploymentRow.epoch)).where(DeploymentRow.model == self._model)
        return max(self._registry._epoch(session), session.scalar(last) or 0)

    def _current(self, session: Session) -> Deployment:
        row = session.scalars(
            select(DeploymentRow)
            .where(DeploymentRow.model == self._model)
            .order_by(DeploymentRow.epoch.desc())
            .limit(1)
        ).first()
        aliases = self._registry._aliases(session)
        moved = self._registry._epoch(session)
        last = from_json(Deployment, row.record) if row is not None else None
        if last is not None and last.epoch >= moved:
            return last
        return Deployment(
            roles={role: aliases[role].version for role in (CHAMPION, PREVIOUS) if role in aliases},
            shares={CHAMPION: 1.0} if CHAMPION in aliases else {},
            policy=last.policy if last else None,
            document=last.document if last else {},
            epoch=moved,
        )
