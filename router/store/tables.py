"""The tables. Rows become the values of `router.jobs` in the modules beside this one, and nowhere else.

A job's row carries its current lease (`attempt`, `worker`, `lease_expires_at`), so that lease, renew and
finish each are one guarded UPDATE of one row; `attempts` is the history. Times are milliseconds since
the Unix epoch by `router.store.clock`.
"""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Enum,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

from router.batches import BatchState
from router.contract import DeliveryState, JobState
from router.jobs import AttemptEnd, Cause

metadata = MetaData()


def _one_of(words: type[StrEnum]) -> Enum:
    """A closed set, kept by value in an ordinary string column: adding a word needs no migration."""
    return Enum(words, native_enum=False, length=16, values_callable=lambda enum: [word.value for word in enum])


api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("sha256", String(64), nullable=False, unique=True),
    # The hash's first 12 digits: what a key is looked up and shown by.
    Column("fingerprint", String(12), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    # router.limits.KeyLimits; NULL is no limit. `pools` is a JSON list.
    Column("per_minute", Integer),
    Column("max_running", Integer),
    Column("max_waiting", Integer),
    Column("pools", Text),
    # router.limits.Bucket; NULL until the first request that was counted.
    Column("tokens", Float),
    Column("tokens_at", BigInteger),
    Index("ix_api_keys_fingerprint", "fingerprint"),
)

# What each key's images have cost by day (UTC): kept when the jobs themselves are gone.
usage = Table(
    "usage",
    metadata,
    Column("api_key_id", String(40), ForeignKey("api_keys.id"), primary_key=True),
    Column("day", String(10), primary_key=True),
    Column("images", BigInteger, nullable=False),
    Column("pixels", BigInteger, nullable=False),
    Column("gpu_ms", BigInteger, nullable=False),
)

# Requests that were sent with an Idempotency-Key, and the jobs that they made.
idempotency = Table(
    "idempotency",
    metadata,
    Column("api_key_id", String(40), ForeignKey("api_keys.id"), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("body_sha256", String(64), nullable=False),
    Column("job_ids", Text, nullable=False),  # joined by spaces
    Column("waiting", Integer, nullable=False),  # open requests that wait for these jobs now
    Column("created_at", BigInteger, nullable=False),
    Index("ix_idempotency_age", "created_at"),
)

facts = Table(
    "facts",
    metadata,
    # What is true of the database as a whole, by name; written once.
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("url", Text, nullable=False),
    Column("token", Text, nullable=False),
    Column("pool", String(32), nullable=False),
    Column("draining", Boolean, nullable=False),
    Column("quarantine_cause", _one_of(Cause)),
    Column("quarantine_reason", Text),
    # Attempts that ended before this tell nothing any more: somebody has looked at the worker since.
    Column("trusted_since", BigInteger, nullable=False, server_default="0"),
    # What it has said of itself; NULL until it has.
    Column("tier", String(32)),
    Column("model", String(200)),
    Column("max_pixels", Integer),
)

beliefs = Table(
    "beliefs",
    metadata,
    Column("driver", String(64), primary_key=True),
    Column("worker", String(63), primary_key=True),
    Column("seen_at", BigInteger, nullable=False),
    Column("view", Text, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("api_key_id", String(40), ForeignKey("api_keys.id"), nullable=False),
    Column("pool", String(32), nullable=False),
    Column("state", _one_of(JobState), nullable=False),
    Column("request", Text, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("worker", String(63)),
    Column("driver", String(64)),
    Column("lease_expires_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("image_path", Text),
    Column("image_sha256", String(64)),
    Column("image_bytes", BigInteger),
    Column("image_media_type", String(64)),
    Column("image_suspicion", Text),
    Column("image_gpu_ms", BigInteger),  # in the attempt that made it
    Column("error_type", String(32)),
    Column("error_detail", Text),
    Column("precedence", Integer, nullable=False),  # the priority, negated: the lowest goes first
    Column("deadline", BigInteger),
    Column("tier", String(32)),
    Column("model", String(200)),
    Column("pixels", Integer, nullable=False),
    Column("work", BigInteger, nullable=False),
    # router.choice.Lane's name, and the job's place in it: by priority, then by when it is due, then by age.
    Column("lane", String(300), nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("webhook", Text),
    Column("retry_of", String(40)),
    Column("batch_id", String(40)),
    Column("batch_line", Integer),
    Column("front", String(40)),  # whose open request alone it is for; NULL: its key's, or it may be asked for again
    # A key's own, by age: what its owner lists.
    Index("ix_jobs_owner", "api_key_id", "id"),
    # How a batch's lines stand, without touching a row; and whether anything of it has not ended.
    Index(
        "ix_jobs_batch",
        "batch_id",
        "batch_line",
        "state",
        sqlite_where=text("batch_id IS NOT NULL"),
        postgresql_where=text("batch_id IS NOT NULL"),
    ),
    Index(
        "ix_jobs_batch_open",
        "batch_id",
        sqlite_where=text("batch_id IS NOT NULL AND finished_at IS NULL"),
        postgresql_where=text("batch_id IS NOT NULL AND finished_at IS NULL"),
    ),
    # Counts jobs by pool and state without touching a row. What waits is left to the next index, also lest Postgres
    # takes this one for it where it has no statistics yet, and walks through all that waits.
    Index(
        "ix_jobs_states",
        "pool",
        "state",
        sqlite_where=text("state <> 'queued'"),
        postgresql_where=text("state <> 'queued'"),
    ),
    Index(
        "ix_jobs_waiting",
        "pool",
        "lane",
        "precedence",
        "due_at",
        "id",
        "work",  # so that a lane is summed up without touching a row
        "state",  # SQLite looks at it in the row otherwise, though the index holds nothing else
        sqlite_where=text("state = 'queued'"),
        postgresql_where=text("state = 'queued'"),
    ),
    Index(
        "ix_jobs_running",
        "api_key_id",
        sqlite_where=text("state = 'running'"),
        postgresql_where=text("state = 'running'"),
    ),
    Index(
        "ix_jobs_deadlines",
        "deadline",
        sqlite_where=text("state = 'queued' AND deadline IS NOT NULL"),
        postgresql_where=text("state = 'queued' AND deadline IS NOT NULL"),
    ),
    Index(
        "ix_jobs_fronts",
        "front",
        sqlite_where=text("state = 'queued' AND front IS NOT NULL"),
        postgresql_where=text("state = 'queued' AND front IS NOT NULL"),
    ),
    # What has ended, by age: for the retention.
    Index(
        "ix_jobs_ended",
        "finished_at",
        sqlite_where=text("finished_at IS NOT NULL"),
        postgresql_where=text("finished_at IS NOT NULL"),
    ),
    # Which images are whose: what no job names is garbage.
    Index("ix_jobs_images", "image_path"),
    Index(
        "ix_jobs_leases",
        "lease_expires_at",
        sqlite_where=text("lease_expires_at IS NOT NULL"),
        postgresql_where=text("lease_expires_at IS NOT NULL"),
    ),
)

# Pools whose machines boot: until then jobs are taken on though no worker is registered.
expected_pools = Table(
    "expected_pools",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("until", BigInteger, nullable=False),
)

# Whose turn it is in a pool: the number of each key's last one.
turns = Table(
    "turns",
    metadata,
    Column("pool", String(32), primary_key=True),
    Column("api_key_id", String(40), ForeignKey("api_keys.id"), primary_key=True),
    Column("turn", BigInteger, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", String(40), ForeignKey("jobs.id"), primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    # No foreign key: the history outlives the worker.
    Column("worker", String(63), nullable=False),
    Column("pool", String(32), nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("end", _one_of(AttemptEnd)),
    Column("detail", Text),
    Column("timings", Text),
    Index("ix_attempts_worker", "worker", "end"),
    Index("ix_attempts_recent", "worker", "ended_at"),
    Index("ix_attempts_pool", "pool", "end", "ended_at"),
)

# Without foreign keys: a delivery outlives its job's row, and a key that was revoked.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("api_key_id", String(40), nullable=False),
    Column("url", Text, nullable=False),
    Column("host", String(300), nullable=False),
    Column("event", String(32), nullable=False),
    Column("subject", String(40), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("state", _one_of(DeliveryState), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("tried_before", Integer, nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("lease_expires_at", BigInteger),
    Column("ended_at", BigInteger),
    Column("status", Integer),
    Column("detail", Text),
    Index(
        "ix_webhook_deliveries_due",
        "due_at",
        "id",
        sqlite_where=text("state = 'pending'"),
        postgresql_where=text("state = 'pending'"),
    ),
    Index("ix_webhook_deliveries_ended", "state", "ended_at"),
    Index("ix_webhook_deliveries_created", "created_at"),
)

# Receivers that answered 410: nothing more goes there until somebody replays.
webhook_refusals = Table(
    "webhook_refusals",
    metadata,
    Column("api_key_id", String(40), primary_key=True),
    Column("url", Text, primary_key=True),
    Column("refused_at", BigInteger, nullable=False),
)

# As they are, because they sign: whoever has the database has them, as with workers' tokens.
webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("api_key_id", String(40), nullable=False, index=True),
    Column("secret", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("good_until", BigInteger),  # NULL: the one in use
)

# Sums that only ever grow, for the metrics (router.store.sum_rows). `of` is a pool's, a worker's name, or pool/end.
tallies = Table(
    "tallies",
    metadata,
    Column("of", String(63), primary_key=True),
    Column("measure", String(16), primary_key=True),
    Column("bucket", Integer, primary_key=True, autoincrement=False),
    Column("count", BigInteger, nullable=False),
    Column("total_ms", BigInteger, nullable=False),
)

# Files of batches (router.batches.StoredFile). The bytes are in the artifact store, under `path`.
files = Table(
    "files",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("api_key_id", String(40), ForeignKey("api_keys.id"), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("path", String(120), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Index("ix_files_owner", "api_key_id", "id"),
    Index("ix_files_expiry", "expires_at"),
)

# router.batches.Batch, and who works at it until when. Files are named without a foreign key: one may go before it.
batches = Table(
    "batches",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("api_key_id", String(40), ForeignKey("api_keys.id"), nullable=False),
    Column("pool", String(32), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("input_file_id", String(40), nullable=False),
    Column("window", String(16), nullable=False),
    Column("output_ms", BigInteger, nullable=False),
    Column("metadata", Text),
    Column("webhook", Text),
    Column("state", _one_of(BatchState), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("in_progress_at", BigInteger),
    Column("finalizing_at", BigInteger),
    Column("cancelling_at", BigInteger),
    Column("ended_at", BigInteger),
    # Bytes that its output may take; until it has ended they count as its key's files.
    Column("promised", BigInteger),
    Column("total", Integer, nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("faults", Text),
    Column("validated", Boolean, nullable=False),
    Column("loaded", Boolean, nullable=False),
    Column("read_to", BigInteger, nullable=False),
    Column("lines_read", Integer, nullable=False),
    Column("output_file_id", String(40)),
    Column("error_file_id", String(40)),
    Column("attempt", Integer, nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("lease_expires_at", BigInteger),
    Index("ix_batches_owner", "api_key_id", "id"),
    Index("ix_batches_input", "input_file_id"),
    Index(
        "ix_batches_open", "due_at", sqlite_where=text("ended_at IS NULL"), postgresql_where=text("ended_at IS NULL")
    ),
    Index("ix_batches_ended", "ended_at"),
)

# What became of each line of a batch that is not over: jobs name their line (`jobs.batch_line`), or `refusal` says why
# there is none (router.batches.LineRefusal as JSON).
batch_lines = Table(
    "batch_lines",
    metadata,
    Column("batch_id", String(40), primary_key=True),
    Column("line", Integer, primary_key=True, autoincrement=False),
    Column("custom_id", Text, nullable=False),
    Column("by_url", Boolean, nullable=False),
    Column("refusal", Text),
    Column("foreseen", BigInteger),  # None: of an earlier release's
)
