"""`python -m router.db upgrade | backup FILE`: the database by itself, whether a router runs on it or not.

What the router would be told (`router.settings`) says which database. A backup may be taken while routers work: it
is of one moment, it is tried before it gets its name, and it opens as a database of the router's.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import URL, make_url

from router.errors import RouterError
from router.settings import SettingsError, read_shared_settings
from router.store.database import Database

DUMP_S = 3600
PAGES = 1000
"""That SQLite copies before a writer has its turn: 4 MB."""


class BackupError(RouterError):
    """The backup was not made; what was at its place before is as it was."""


async def upgrade(url: str) -> str:
    """Bring the schema up to date, and say which it is now. A router does so by itself when it starts."""
    database = await Database.open(url)
    try:
        revision = await database.read(lambda connection: connection.exec_driver_sql(REVISION).scalar_one())
    finally:
        await database.close()
    return f"the schema is at revision {revision}"


REVISION = "SELECT version_num FROM alembic_version"


def backup(url: str, file: Path) -> str:
    """Write a backup to `file`, 0600, in place of what may be there."""
    parsed = make_url(url)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        try:
            draft.touch(mode=0o600)
            if parsed.get_backend_name() == "sqlite":
                _copy(Path(parsed.database or ""), draft)
            else:
                _dump(parsed, draft)
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise BackupError(f"{file} cannot be written: {error.strerror}") from error
    kind = "a SQLite database" if parsed.get_backend_name() == "sqlite" else "an archive for pg_restore"
    return f"wrote {file}, {kind} of {file.stat().st_size:,} bytes"


def _copy(source: Path, target: Path) -> None:
    """SQLite's own online backup: of one moment, also while others write."""
    if not source.is_file():
        raise BackupError(f"there is no database at {source}")
    try:
        with (
            closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as old,
            closing(sqlite3.connect(target)) as new,
        ):
            old.backup(new, pages=PAGES)
            new.execute("PRAGMA journal_mode = DELETE")  # one file, with nothing beside it
            (verdict,) = new.execute("PRAGMA integrity_check").fetchone()
    except sqlite3.Error as error:
        raise BackupError(f"the database {source} could not be copied: {error}") from error
    if verdict != "ok":
        raise BackupError(f"the database {source} is damaged: {verdict}")


def _dump(url: URL, target: Path) -> None:
    program, restore = shutil.which("pg_dump"), shutil.which("pg_restore")
    if program is None or restore is None:
        raise BackupError("pg_dump and pg_restore are not on PATH; install postgresql-client of the server's version")
    plain = url.set(drivername="postgresql", password=None).render_as_string()
    # The environment of a process is its own user's and root's to see; its arguments are everybody's.
    environment = {**os.environ, **({"PGPASSWORD": str(url.password)} if url.password else {})}
    for command in (
        [program, "--format=custom", "--no-owner", f"--file={target}", f"--dbname={plain}"],
        [restore, "--list", str(target)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DUMP_S, env=environment)
        if done.returncode != 0:
            raise BackupError(f"{Path(command[0]).name} failed: {done.stderr.strip() or done.returncode}")


def main() -> int:
    """The exit status, as `router.__main__` has them."""
    os.umask(0o077)
    parser = argparse.ArgumentParser(prog="python -m router.db", description="The router's database by itself.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("upgrade", help="bring the schema up to date")
    verbs.add_parser("backup", help="write a backup that opens").add_argument("file", type=Path)
    asked = parser.parse_args()
    try:
        url = read_shared_settings().database
        print(backup(url, asked.file) if asked.verb == "backup" else asyncio.run(upgrade(url)))
    except RouterError as error:
        print(error, file=sys.stderr)
        return os.EX_CONFIG if isinstance(error, SettingsError) else os.EX_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
