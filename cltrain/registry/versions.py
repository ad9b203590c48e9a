"""What is known of a version, and what is known of the code that makes one."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from cltrain.records import Challenger, Json, Kind, Verdict, from_json
from cltrain.registry.tables import (
    AliasRow,
    AnnotationRow,
    ApprovalRow,
    DependencyRow,
    VersionRow,
    VersionStageRow,
)

CANDIDATE, VALIDATED, PRODUCTION, WITHDRAWN = "candidate", "validated", "production-validated", "withdrawn"
ROLLED_BACK = "rolled_back"
_OWN = ("model", "version", "parent", "compared_to", "kind", "round_index", "reason", "state")
_DIGESTS = ("snapshot_digest", "weights_digest", "settings_digest")
_TRAINED = ("rows_trained", "rows_replayed", "steps", "seconds", "absorb_seconds", "loss", "parameters", "workers")
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Challenger) if f.default is not dataclasses.MISSING}
_PACKAGES = ("cltrain", "torch", "numpy", "pyarrow", "ray", "safetensors")
_MANY = 500  # versions that a query names one by one; of more it asks for all of the model


@dataclass(frozen=True, kw_only=True)
class VersionRecord:
    """approval: state of the approval, None where nobody was asked. stage: how far the version has come, by evidence.
    depends_on: versions of other models that it was trained with, as `model:version`. `challenger` and `verdict` are
    read from `trained` and `judged`, their JSON, when they are asked for: a list of versions rarely does."""

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
    trained: Json = field(repr=False, hash=False)
    judged: Json = field(hash=False)
    aliases: tuple[str, ...] = ()
    approval: str | None = None
    stage: str = CANDIDATE
    tags: Json = field(default_factory=dict, hash=False)
    depends_on: tuple[str, ...] = ()

    @cached_property
    def challenger(self) -> Challenger:
        return from_json(Challenger, self.trained)

    @cached_property
    def verdict(self) -> Verdict:
        return from_json(Verdict, self.judged)

    @property
    def name(self) -> str:
        return f"{self.model}:{self.version}"

    def summary(self) -> Json:
        """What `cltrain versions --json` prints for it."""
        value: Json = {name: getattr(self, name) for name in (*_OWN, *_DIGESTS, "seed", "code_commit")}
        value |= {"created_at": self.created_at.isoformat(), "verdict": self.judged, "aliases": list(self.aliases)}
        value |= {"approval": self.approval, "stage": self.stage, "tags": self.tags}
        value |= {"depends_on": list(self.depends_on)}
        value |= {name: self.trained.get(name, _DEFAULTS.get(name)) for name in (*_TRAINED, "carried")}
        value["snapshot_rows"] = self.trained["snapshot"]["rows"]
        value["trained_until"] = self.trained["cursor"]["until"]
        return value


def describe(session: Session, rows: Sequence[VersionRow]) -> list[VersionRecord]:
    """Records of rows of any models, in their order. Takes five queries a model, however many the rows."""
    by_model: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_model[row.model].append(row.version)
    about = {model: _About(session, model, versions) for model, versions in by_model.items()}
    return [about[row.model].record(row) for row in rows]


class _About:
    """What other tables know of some versions of one model."""

    def __init__(self, session: Session, model: str, versions: list[str]) -> None:
        def rows(kind: Any, *order: Any) -> list[Any]:
            query: Select[Any] = select(kind).where(kind.model == model)
            if len(versions) <= _MANY:
                query = query.where(kind.version.in_(versions))
            return list(session.scalars(query.order_by(*order)))

        self.aliases, self.depends_on = defaultdict(list), defaultdict(list)
        for alias in rows(AliasRow, AliasRow.alias):
            self.aliases[alias.version].append(alias.alias)
        for on in rows(DependencyRow, DependencyRow.on_model, DependencyRow.on_version):
            self.depends_on[on.version].append(f"{on.on_model}:{on.on_version}")
        self.approvals = {row.version: row.state for row in rows(ApprovalRow)}
        self.stages = {row.version: row.stage for row in rows(VersionStageRow, VersionStageRow.id)}
        self.tags: dict[str, Json] = defaultdict(dict)
        for said in rows(AnnotationRow, AnnotationRow.id):
            if said.key is not None:
                self.tags[said.version][said.key] = said.value

    def record(self, row: VersionRow) -> VersionRecord:
        tags = {key: value for key, value in self.tags[row.version].items() if value is not None}
        approval = self.approvals.get(row.version)
        passed = approval == "approved" or (row.verdict["accepted"] and approval != "rejected")
        stage = self.stages.get(row.version, CANDIDATE)
        if ROLLED_BACK in tags:
            stage = WITHDRAWN
        elif stage != PRODUCTION:
            stage = VALIDATED if passed else CANDIDATE
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
            trained=row.challenger,
            judged=row.verdict,
            aliases=tuple(self.aliases[row.version]),
            approval=approval,
            stage=stage,
            tags=tags,
            depends_on=tuple(self.depends_on[row.version]),
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
