"""The schema. Every table is keyed by model, since a store holds many. A change here needs a step in `migrations/`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Double, ForeignKeyConstraint, Index, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UTCDateTime(TypeDecorator[datetime]):
    """SQLite forgets the time zone and PostgreSQL answers in the session's; all instants are UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class JsonText(TypeDecorator[Any]):
    """JSON in a column of text, as Python writes it: losses may be NaN, which a JSON column of PostgreSQL refuses."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str:
        return json.dumps(value)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JsonText, list[str]: JsonText, datetime: UTCDateTime}  # noqa: RUF012


class VersionRow(Base):
    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("model", "round_index", "kind", name="one_version_a_round_and_kind"),
        ForeignKeyConstraint(["model", "parent"], ["versions.model", "versions.version"]),
        Index("versions_in_order", "model", "ordinal"),
        Index("versions_by_parent", "model", "parent"),
        Index("versions_by_state", "model", "state"),
    )
    model: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(primary_key=True)
    ordinal: Mapped[int]
    major: Mapped[int]
    minor: Mapped[int]
    parent: Mapped[str | None]
    compared_to: Mapped[str | None]
    kind: Mapped[str]
    round_index: Mapped[int]
    reason: Mapped[str]
    state: Mapped[str]
    snapshot_digest: Mapped[str] = mapped_column(index=True)
    weights_digest: Mapped[str]
    settings_digest: Mapped[str]
    seed: Mapped[int] = mapped_column(BigInteger)
    code_commit: Mapped[str | None]
    created_at: Mapped[datetime]
    challenger: Mapped[dict[str, Any]]
    card: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    verdict: Mapped[dict[str, Any]]
    packages: Mapped[dict[str, Any]] = mapped_column(deferred=True)


def _of_version(model: str = "model", version: str = "version") -> ForeignKeyConstraint:
    return ForeignKeyConstraint([model, version], ["versions.model", "versions.version"])


class DependencyRow(Base):
    """`model:version` was trained with the outputs of `on_model:on_version`, as a ranker is with an embedding."""

    __tablename__ = "dependencies"
    __table_args__ = (
        _of_version(),
        _of_version("on_model", "on_version"),
        Index("dependencies_on", "on_model", "on_version"),
    )
    model: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(primary_key=True)
    on_model: Mapped[str] = mapped_column(primary_key=True)
    on_version: Mapped[str] = mapped_column(primary_key=True)


class SnapshotRow(Base):
    """The rule of a snapshot that a version was trained on, as its manifest has it; times are microseconds. `cut_off`:
    of a sample, the hash of an id up to which rows are in it. A snapshot without a row here has not been read yet."""

    __tablename__ = "snapshots"
    digest: Mapped[str] = mapped_column(primary_key=True)
    split: Mapped[str]
    until_us: Mapped[int] = mapped_column(BigInteger)
    after_us: Mapped[int | None] = mapped_column(BigInteger)
    start_us: Mapped[int | None] = mapped_column(BigInteger)
    end_us: Mapped[int | None] = mapped_column(BigInteger)
    excluded: Mapped[list[list[int]]] = mapped_column(JsonText)
    holdout_share: Mapped[float] = mapped_column(Double)
    seed: Mapped[int] = mapped_column(BigInteger)
    cut_off: Mapped[float | None] = mapped_column(Double)


class SnapshotFileRow(Base):
    """A file that the manifest of a snapshot names. seen: it was there before the version that the snapshot follows.
    index_digest: name of the index of its rows; None if it was not made."""

    __tablename__ = "snapshot_files"
    __table_args__ = (
        Index("snapshots_of_file", "file_digest"),
        Index("snapshots_of_file_name", "name"),
        Index("snapshots_of_index", "index_digest"),
    )
    snapshot_digest: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    file_digest: Mapped[str]
    seen: Mapped[bool]
    index_digest: Mapped[str | None]


class RowIndexRow(Base):
    """The index of a file's rows, and the blob that it is in: one of its own, or one that was merged from many."""

    __tablename__ = "row_indexes"
    __table_args__ = (Index("row_indexes_of_segment", "segment"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    digest: Mapped[str] = mapped_column(unique=True)
    rows: Mapped[int] = mapped_column(BigInteger)
    segment: Mapped[str]


class SettingsRow(Base):
    __tablename__ = "settings"
    digest: Mapped[str] = mapped_column(primary_key=True)
    settings: Mapped[dict[str, Any]]


class AliasRow(Base):
    __tablename__ = "aliases"
    model: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str]
    epoch: Mapped[int]


class AliasMoveRow(Base):
    """Every move of every alias, for ever; `new` is None where it was taken away. `epoch` grows by one with each new
    champion. `entry` is the number of the audit log's entry on it."""

    __tablename__ = "alias_moves"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    model: Mapped[str] = mapped_column(index=True)
    alias: Mapped[str]
    old: Mapped[str | None]
    new: Mapped[str | None]
    epoch: Mapped[int]
    at: Mapped[datetime]
    by: Mapped[str]
    reason: Mapped[str]
    entry: Mapped[int | None]


class StageRow(Base):
    """What a stage of a round returned: the round goes on from the last of these after a crash."""

    __tablename__ = "stages"
    model: Mapped[str] = mapped_column(primary_key=True)
    round_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    stage: Mapped[str] = mapped_column(primary_key=True)
    record: Mapped[dict[str, Any] | None] = mapped_column(JsonText)
    at: Mapped[datetime]


class DeploymentRow(Base):
    """What should serve, as `deployment.py` writes it. Rows are added and never changed; the one of the highest epoch
    holds."""

    __tablename__ = "deployments"
    model: Mapped[str] = mapped_column(primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    record: Mapped[dict[str, Any]]
    at: Mapped[datetime]
    by: Mapped[str]
    reason: Mapped[str]


class ApprovalRow(Base):
    """Whether people let a version through: awaiting, approved, rejected or expired. `needed` of `roles` must sign, or
    `needed` people where no roles are named."""

    __tablename__ = "approvals"
    __table_args__ = (_of_version(),)
    model: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    roles: Mapped[list[str]]
    needed: Mapped[int]
    asked_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    by: Mapped[str | None]
    comment: Mapped[str | None]
    answered_at: Mapped[datetime | None]


class SignOffRow(Base):
    """One person's yes."""

    __tablename__ = "sign_offs"
    __table_args__ = (_of_version(),)
    model: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(primary_key=True)
    by: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str | None]
    comment: Mapped[str]
    at: Mapped[datetime]


class AnnotationRow(Base):
    """What people and the loop say of a version: a tag has a key, a note has none. The last row of a key holds; its
    value is None where the tag was taken away."""

    __tablename__ = "annotations"
    __table_args__ = (_of_version(), Index("annotations_of_version", "model", "version"))
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    model: Mapped[str]
    version: Mapped[str]
    key: Mapped[str | None]
    value: Mapped[str | None]
    at: Mapped[datetime]
    by: Mapped[str]


class VersionStageRow(Base):
    """How far a version has come beyond what its verdict and approval say, with the evidence. The last row holds."""

    __tablename__ = "version_stages"
    __table_args__ = (_of_version(), Index("stages_of_version", "model", "version"))
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    model: Mapped[str]
    version: Mapped[str]
    stage: Mapped[str]
    evidence: Mapped[dict[str, Any]]
    at: Mapped[datetime]
    by: Mapped[str]


class AuditRow(Base):
    """Who did what in the whole store: one chain, in which each entry holds the digest of the one before it."""

    __tablename__ = "audit"
    __table_args__ = (Index("audit_of_model", "model"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    by: Mapped[str]
    action: Mapped[str]
    model: Mapped[str | None]
    subject: Mapped[str | None]
    details: Mapped[dict[str, Any]]
    previous: Mapped[str]
    digest: Mapped[str]
