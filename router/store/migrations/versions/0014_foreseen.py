"""How many bytes each line's answer was foreseen to take of what its batch was promised."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.add_column("batch_lines", sa.Column("foreseen", sa.BigInteger))
