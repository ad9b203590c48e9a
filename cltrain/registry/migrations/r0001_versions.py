"""Versions, aliases and rounds: the schema of stores from before there were steps, which have these tables already."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None
INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "versions",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("major", sa.Integer(), nullable=False),
        sa.Column("minor", sa.Integer(), nullable=False),
        sa.Column("parent", sa.String()),
        sa.Column("compared_to", sa.String()),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("round_index", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("snapshot_digest", sa.String(), nullable=False),
        sa.Column("weights_digest", sa.String(), nullable=False),
        sa.Column("settings_digest", sa.String(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("code_commit", sa.String()),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("challenger", sa.Text(), nullable=False),
        sa.Column("card", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("packages", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("model", "version"),
        sa.UniqueConstraint("model", "round_index", "kind", name="one_version_a_round_and_kind"),
        sa.ForeignKeyConstraint(["model", "parent"], ["versions.model", "versions.version"]),
        if_not_exists=True,
    )
    op.create_index("ix_versions_snapshot_digest", "versions", ["snapshot_digest"], if_not_exists=True)
    op.create_table(
        "settings",
        sa.Column("digest", sa.String(), primary_key=True),
        sa.Column("settings", sa.Text(), nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "aliases",
        sa.Column("model", sa.String(), primary_key=True),
        sa.Column("alias", sa.String(), primary_key=True),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "alias_moves",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("old", sa.String()),
        sa.Column("new", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        if_not_exists=True,
    )
    op.create_index("ix_alias_moves_model", "alias_moves", ["model"], if_not_exists=True)
    op.create_table(
        "stages",
        sa.Column("model", sa.String(), primary_key=True),
        sa.Column("round_index", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("stage", sa.String(), primary_key=True),
        sa.Column("record", sa.Text()),
        sa.Column("at", INSTANT, nullable=False),
        if_not_exists=True,
    )
