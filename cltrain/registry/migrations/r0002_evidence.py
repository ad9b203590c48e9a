"""Dependencies, files of snapshots, deployments, approvals, annotations, stages by evidence, and the audit log."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"
INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_index("versions_in_order", "versions", ["model", "ordinal"])
    op.create_index("versions_by_parent", "versions", ["model", "parent"])
    op.create_index("versions_by_state", "versions", ["model", "state"])
    with op.batch_alter_table("alias_moves") as moves:
        moves.alter_column("new", existing_type=sa.String(), nullable=True)
        moves.add_column(sa.Column("entry", sa.Integer()))
    op.create_table(
        "dependencies",
        sa.Column("model", sa.String(), primary_key=True),
        sa.Column("version", sa.String(), primary_key=True),
        sa.Column("on_model", sa.String(), primary_key=True),
        sa.Column("on_version", sa.String(), primary_key=True),
        _of_version(),
        sa.ForeignKeyConstraint(["on_model", "on_version"], ["versions.model", "versions.version"]),
    )
    op.create_index("dependencies_on", "dependencies", ["on_model", "on_version"])
    op.create_table(
        "snapshot_files",
        sa.Column("snapshot_digest", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("file_digest", sa.String(), nullable=False),
    )
    op.create_index("snapshots_of_file", "snapshot_files", ["file_digest"])
    op.create_index("snapshots_of_file_name", "snapshot_files", ["name"])
    op.create_table(
        "deployments",
        sa.Column("model", sa.String(), primary_key=True),
        sa.Column("epoch", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
    )
    op.create_table(
        "approvals",
        sa.Column("model", sa.String(), primary_key=True),
        sa.Column("version", sa.String(), primary_key=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("needed", sa.Integer(), nullable=False),
        sa.Column("asked_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT),
        sa.Column("by", sa.String()),
        sa.Column("comment", sa.String()),
        sa.Column("answered_at", INSTANT),
        _of_version(),
    )
    op.create_table(
        "sign_offs",
        sa.Column("model", sa.String(), primary_key=True),
        sa.Column("version", sa.String(), primary_key=True),
        sa.Column("by", sa.String(), primary_key=True),
        sa.Column("role", sa.String()),
        sa.Column("comment", sa.String(), nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        _of_version(),
    )
    op.create_table(
        "annotations",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("key", sa.String()),
        sa.Column("value", sa.String()),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        _of_version(),
    )
    op.create_index("annotations_of_version", "annotations", ["model", "version"])
    op.create_table(
        "version_stages",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        _of_version(),
    )
    op.create_index("stages_of_version", "version_stages", ["model", "version"])
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("model", sa.String()),
        sa.Column("subject", sa.String()),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
    )
    op.create_index("audit_of_model", "audit", ["model"])


def _of_version() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"])
