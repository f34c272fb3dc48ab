"""The outbox of webhooks: transactions of the store, as plain functions of a connection.

`promise` runs inside the transaction that ends a job. A claim is a lease as a job's is: one guarded UPDATE gives
it, and what is recorded names the attempt, so whoever comes late changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    delete,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    update,
)

from router.contract import DeliveryState, WebhookType
from router.ids import secret_id
from router.jobs import Job
from router.store.tables import api_keys, webhook_secrets
from router.store.tables import webhook_deliveries as deliveries
from router.store.tables import webhook_refusals as refusals
from router.webhooks import Again, Claim, Dead, Delivered, Delivery, Verdict, host_of, type_of
from router.webhooks.signing import secret_of

Now = ColumnElement[int]
PENDING = deliveries.c.state == literal_column("'pending'")
"""As a literal: the index of what is on its way is used only where the statement itself says so."""
AT_A_URL_THAT_SAID_GONE = "the receiver answered 410 Gone before; replay the delivery to use this URL again"


def promise(connection: Connection, job: Job) -> None:
    """The job has ended in this transaction: from now on its owner will be told, if one wanted to be."""
    if job.webhook is not None and job.finished_at is not None:
        promise_of(connection, job.api_key_id, job.webhook, type_of(job), job.id, job.finished_at)


def promise_of(
    connection: Connection, api_key_id: str, url: str, event: WebhookType, subject: str, ended_at: int
) -> None:
    """A job or a batch, `subject`, has ended in this transaction: its owner will be told at `url`."""
    given_up = connection.execute(
        select(refusals.c.refused_at).where(refusals.c.api_key_id == api_key_id, refusals.c.url == url)
    ).scalar_one_or_none()
    connection.execute(
        insert(deliveries).values(
            # It ends once, so its own name makes the message's.
            id=f"msg_{subject.partition('_')[2]}",
            api_key_id=api_key_id,
            url=url,
            host=host_of(url),
            event=event,
            subject=subject,
            created_at=ended_at,
            state=DeliveryState.PENDING if given_up is None else DeliveryState.DEAD,
            attempt=0,
            tried_before=0,
            due_at=ended_at,
            ended_at=None if given_up is None else ended_at,
            detail=None if given_up is None else AT_A_URL_THAT_SAID_GONE,
        )
    )


def claim(connection: Connection, now: Now, entropy: bytes, ttl_ms: int, not_to: Sequence[str]) -> Claim | None:
    # Apart from the UPDATE: Postgres may carry a subquery's LIMIT out once for each row that it looks at.
    due = (
        select(deliveries.c.id)
        .where(
            PENDING,
            deliveries.c.due_at <= now,
            or_(deliveries.c.lease_expires_at.is_(None), deliveries.c.lease_expires_at <= now),
            deliveries.c.host.not_in(not_to),
        )
        .order_by(deliveries.c.due_at, deliveries.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    wanted = connection.execute(due).scalar_one_or_none()
    if wanted is None:
        return None
    row = connection.execute(
        update(deliveries)
        .where(deliveries.c.id == wanted)
        .values(attempt=deliveries.c.attempt + 1, lease_expires_at=now + ttl_ms)
        .returning(deliveries)
    ).one()
    return Claim(_delivery(row), secrets(connection, now, entropy, row.api_key_id))


def record(connection: Connection, now: Now, held: Claim, verdict: Verdict) -> bool:
    values: dict[str, Any]
    match verdict:
        case Delivered(status):
            values = {"state": DeliveryState.DELIVERED, "ended_at": now, "status": status, "detail": null()}
        case Again(pause_ms, status, detail):
            values = {"due_at": now + pause_ms, "status": status, "detail": detail}
        case Dead(status, detail):
            values = {"state": DeliveryState.DEAD, "ended_at": now, "status": status, "detail": detail}
    delivery = held.delivery
    changed = connection.execute(
        update(deliveries)
        .where(
            deliveries.c.id == delivery.id,
            deliveries.c.attempt == delivery.attempt,
            deliveries.c.state == DeliveryState.PENDING,
        )
        .values(lease_expires_at=null(), **values)
    )
    if changed.rowcount and isinstance(verdict, Dead) and verdict.gone:
        _give_up(connection, now, delivery, verdict)
    return changed.rowcount == 1


def _give_up(connection: Connection, now: Now, delivery: Delivery, verdict: Dead) -> None:
    here = and_(deliveries.c.api_key_id == delivery.api_key_id, deliveries.c.url == delivery.url)
    connection.execute(
        update(deliveries)
        .where(here, deliveries.c.state == DeliveryState.PENDING)
        .values(state=DeliveryState.DEAD, ended_at=now, lease_expires_at=null(), detail=verdict.detail)
    )
    connection.execute(_no_refusal(delivery))  # another try may have heard the same just before
    connection.execute(insert(refusals).values(api_key_id=delivery.api_key_id, url=delivery.url, refused_at=now))


def _no_refusal(delivery: Delivery) -> Any:  # noqa: ANN401 - a statement's own type says nothing more
    return delete(refusals).where(refusals.c.api_key_id == delivery.api_key_id, refusals.c.url == delivery.url)


def every(connection: Connection, state: DeliveryState | None, limit: int) -> Sequence[Delivery]:
    wanted = select(deliveries).order_by(deliveries.c.created_at.desc(), deliveries.c.id.desc()).limit(limit)
    if state is not None:
        wanted = wanted.where(deliveries.c.state == state)
    return [_delivery(row) for row in connection.execute(wanted)]


def replay(connection: Connection, now: Now, delivery_id: str) -> Delivery | None:
    row = connection.execute(
        update(deliveries).where(deliveries.c.id == delivery_id).values(**_anew(now)).returning(deliveries)
    ).one_or_none()
    if row is None:
        return None
    connection.execute(_no_refusal(_delivery(row)))
    return _delivery(row)


def replay_dead(connection: Connection, now: Now) -> int:
    rows = connection.execute(
        update(deliveries).where(deliveries.c.state == DeliveryState.DEAD).values(**_anew(now)).returning(deliveries)
    ).all()
    for row in rows:
        connection.execute(_no_refusal(_delivery(row)))
    return len(rows)


def _anew(now: Now) -> dict[str, Any]:
    return {
        "state": DeliveryState.PENDING,
        # A try that is under way loses its claim by this.
        "attempt": deliveries.c.attempt + 1,
        "tried_before": deliveries.c.attempt + 1,
        "due_at": now,
        "ended_at": null(),
        "lease_expires_at": null(),
    }


def counts(connection: Connection) -> Mapping[DeliveryState, int]:
    counted = select(deliveries.c.state, func.count()).group_by(deliveries.c.state)
    found = {state: count for state, count in connection.execute(counted)}  # noqa: C416 - rows are no pairs to mypy
    return {state: found.get(state, 0) for state in DeliveryState}


def lag_ms(connection: Connection, now: Now) -> int:
    oldest = select(func.min(deliveries.c.due_at)).where(PENDING).scalar_subquery()
    waited = connection.execute(select(now - oldest)).scalar_one()
    return max(0, waited or 0)


def secrets(connection: Connection, now: Now, entropy: bytes, api_key_id: str) -> Sequence[str]:
    if good := _good(connection, now, api_key_id):
        return good
    # Of two routers that look at once, one draws, and the other finds what was drawn.
    connection.execute(select(api_keys.c.id).where(api_keys.c.id == api_key_id).with_for_update(key_share=True))
    return _good(connection, now, api_key_id) or [_draw(connection, now, entropy, api_key_id)]


def _good(connection: Connection, now: Now, api_key_id: str) -> Sequence[str]:
    return connection.scalars(
        select(webhook_secrets.c.secret)
        .where(
            webhook_secrets.c.api_key_id == api_key_id,
            or_(webhook_secrets.c.good_until.is_(None), webhook_secrets.c.good_until > now),
        )
        .order_by(webhook_secrets.c.good_until.is_not(None), webhook_secrets.c.created_at.desc())
    ).all()


def rotate(connection: Connection, now: Now, entropy: bytes, api_key_id: str, overlap_ms: int) -> Sequence[str]:
    connection.execute(
        update(webhook_secrets)
        .where(webhook_secrets.c.api_key_id == api_key_id, webhook_secrets.c.good_until.is_(None))
        .values(good_until=now + overlap_ms)
    )
    _draw(connection, now, entropy, api_key_id)
    return secrets(connection, now, entropy, api_key_id)


def _draw(connection: Connection, now: Now, entropy: bytes, api_key_id: str) -> str:
    at = connection.execute(select(now)).scalar_one()
    secret = secret_of(entropy)
    name = secret_id(at, entropy[:10])
    connection.execute(insert(webhook_secrets).values(id=name, api_key_id=api_key_id, secret=secret, created_at=at))
    return secret


def forget_ended(connection: Connection, now: Now, older_than_ms: int, limit: int) -> int:
    old = (
        select(deliveries.c.id)
        .where(deliveries.c.state != DeliveryState.PENDING, deliveries.c.ended_at < now - older_than_ms)
        .limit(limit)
    )
    return connection.execute(delete(deliveries).where(deliveries.c.id.in_(old))).rowcount


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        id=row.id,
        api_key_id=row.api_key_id,
        url=row.url,
        event=WebhookType(row.event),
        subject=row.subject,
        created_at=row.created_at,
        state=row.state,
        attempt=row.attempt,
        tries=row.attempt - row.tried_before,
        due_at=row.due_at,
        ended_at=row.ended_at,
        status=row.status,
        detail=row.detail,
    )
