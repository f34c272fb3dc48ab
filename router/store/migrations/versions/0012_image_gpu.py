"""What a GPU worked at each image, in the attempt that made it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("image_gpu_ms", sa.BigInteger))
