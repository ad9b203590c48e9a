"""What it takes to tell which versions were trained on a row: rules of snapshots, and where the rows of files are."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    op.drop_table("snapshot_files")  # read again from the manifests, with what it lacked
    op.create_table(
        "snapshots",
        sa.Column("digest", sa.String(), primary_key=True),
        sa.Column("split", sa.String(), nullable=False),
        sa.Column("until_us", sa.BigInteger(), nullable=False),
        sa.Column("after_us", sa.BigInteger()),
        sa.Column("start_us", sa.BigInteger()),
        sa.Column("end_us", sa.BigInteger()),
        sa.Column("excluded", sa.Text(), nullable=False),
        sa.Column("holdout_share", sa.Double(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("cut_off", sa.Double()),
    )
    op.create_table(
        "snapshot_files",
        sa.Column("snapshot_digest", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("file_digest", sa.String(), nullable=False),
        sa.Column("seen", sa.Boolean(), nullable=False),
        sa.Column("index_digest", sa.String()),
    )
    op.create_index("snapshots_of_file", "snapshot_files", ["file_digest"])
    op.create_index("snapshots_of_file_name", "snapshot_files", ["name"])
    op.create_index("snapshots_of_index", "snapshot_files", ["index_digest"])
    op.create_table(
        "row_indexes",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("digest", sa.String(), nullable=False, unique=True),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("segment", sa.String(), nullable=False),
    )
    op.create_index("row_indexes_of_segment", "row_indexes", ["segment"])
