"""Facts about the database as a whole: transactions of the store, as plain functions of a connection."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, literal, select

from router.store.tables import facts


def find(connection: Connection, name: str) -> str | None:
    return connection.execute(select(facts.c.value).where(facts.c.name == name)).scalar_one_or_none()


def propose(connection: Connection, name: str, value: str) -> str:
    """The fact on record, which is `value` if there was none. Of two at once, one loses with an IntegrityError."""
    missing = select(literal(name), literal(value)).where(~select(facts.c.name).where(facts.c.name == name).exists())
    connection.execute(insert(facts).from_select(["name", "value"], missing))
    return find(connection, name) or value


def try_one(connection: Connection, name: str) -> None:
    """Write a row and take it away: nobody sees it, and as `name` is nobody else's, nobody is waited for."""
    connection.execute(insert(facts).values(name=name, value=""))
    connection.execute(delete(facts).where(facts.c.name == name))
