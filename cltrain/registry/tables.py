"""The schema. Every table is keyed by model, since a store holds many."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, ForeignKeyConstraint, Text, UniqueConstraint
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
    type_annotation_map = {dict[str, Any]: JsonText, datetime: UTCDateTime}  # noqa: RUF012


class VersionRow(Base):
    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("model", "round_index", "kind", name="one_version_a_round_and_kind"),
        ForeignKeyConstraint(["model", "parent"], ["versions.model", "versions.version"]),
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
    card: Mapped[dict[str, Any]]
    verdict: Mapped[dict[str, Any]]
    packages: Mapped[dict[str, Any]]


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
    """Every move of every alias, for ever. `epoch` grows by one with each change of what serves."""

    __tablename__ = "alias_moves"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    model: Mapped[str] = mapped_column(index=True)
    alias: Mapped[str]
    old: Mapped[str | None]
    new: Mapped[str]
    epoch: Mapped[int]
    at: Mapped[datetime]
    by: Mapped[str]
    reason: Mapped[str]


class StageRow(Base):
    """What a stage of a round returned: the round goes on from the last of these after a crash."""

    __tablename__ = "stages"
    model: Mapped[str] = mapped_column(primary_key=True)
    round_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    stage: Mapped[str] = mapped_column(primary_key=True)
    record: Mapped[dict[str, Any] | None] = mapped_column(JsonText)
    at: Mapped[datetime]
