"""How many bytes an open batch may still write into its output."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("batches", sa.Column("promised", sa.BigInteger))
