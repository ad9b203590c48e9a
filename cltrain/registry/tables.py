"""The schema. Every table is keyed by model, since a store holds many."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, ForeignKeyConstraint, Integer, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UTCDateTime(TypeDecorator[datetime]):
    """SQLite forgets the time zone; all instants are UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, datetime: UTCDateTime}  # noqa: RUF012


class VersionRow(Base):
    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("model", "round_index", "kind", name="one_version_a_round_and_kind"),
        ForeignKeyConstraint(["model", "parent"], ["versions.model", "versions.version"]),
    )
    model: Mapped[str] = mapped_column(String(200), primary_key=True)
    version: Mapped[str] = mapped_column(String(40), primary_key=True)
    ordinal: Mapped[int] = mapped_column(Integer)
    major: Mapped[int] = mapped_column(Integer)
    minor: Mapped[int] = mapped_column(Integer)
    parent: Mapped[str | None] = mapped_column(String(40))
    compared_to: Mapped[str | None] = mapped_column(String(40))
    kind: Mapped[str] = mapped_column(String(20))
    round_index: Mapped[int] = mapped_column(Integer)
    reason: Mapped[str] = mapped_column(String(500))
    state: Mapped[str] = mapped_column(String(200))
    snapshot_digest: Mapped[str] = mapped_column(String(64), index=True)
    weights_digest: Mapped[str] = mapped_column(String(64))
    settings_digest: Mapped[str] = mapped_column(String(64))
    seed: Mapped[int] = mapped_column(Integer)
    code_commit: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime]
    challenger: Mapped[dict[str, Any]]
    card: Mapped[dict[str, Any]]
    verdict: Mapped[dict[str, Any]]
    packages: Mapped[dict[str, Any]]


class SettingsRow(Base):
    __tablename__ = "settings"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    settings: Mapped[dict[str, Any]]


class AliasRow(Base):
    __tablename__ = "aliases"
    model: Mapped[str] = mapped_column(String(200), primary_key=True)
    alias: Mapped[str] = mapped_column(String(60), primary_key=True)
    version: Mapped[str] = mapped_column(String(40))
    epoch: Mapped[int] = mapped_column(Integer)


class AliasMoveRow(Base):
    """Every move of every alias, for ever. `epoch` grows by one with each change of what serves."""

    __tablename__ = "alias_moves"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    model: Mapped[str] = mapped_column(String(200), index=True)
    alias: Mapped[str] = mapped_column(String(60))
    old: Mapped[str | None] = mapped_column(String(40))
    new: Mapped[str] = mapped_column(String(40))
    epoch: Mapped[int] = mapped_column(Integer)
    at: Mapped[datetime]
    by: Mapped[str] = mapped_column(String(200))
    reason: Mapped[str] = mapped_column(String(500))


class StageRow(Base):
    """What a stage of a round returned: the round goes on from the last of these after a crash."""

    __tablename__ = "stages"
    model: Mapped[str] = mapped_column(String(200), primary_key=True)
    round_index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    stage: Mapped[str] = mapped_column(String(60), primary_key=True)
    record: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    at: Mapped[datetime]
