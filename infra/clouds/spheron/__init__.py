"""Spheron (app.spheron.ai): virtual machines by the second, on demand and spot. All that is known of it is in here.

`api` is what its API answers and what is assumed of that, `offers` what it sells; this module rents.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pydantic import JsonValue

from infra.clouds import (
    Ability,
    CloudError,
    HostKind,
    Machine,
    MachineSpec,
    Market,
    NoStockError,
    Observed,
    Offer,
    OutcomeUnknownError,
    Presence,
    TooEarlyError,
)
from infra.clouds.account import ListedCloud, key_of
from infra.clouds.quota import Quota
from infra.clouds.spheron.api import (
    ALIVE,
    API_KEY,
    API_URL,
    BASE,
    BLOCKED_S,
    FRESH_S,
    GONE,
    INSTANCE_TYPES,
    KEYS_ARE_MADE,
    LIMITS,
    NAME,
    NO_STOCK,
    OFFERS,
    PAGE,
    STOPPED,
    TAKEN_BACK,
    TEAM_ID,
    Balance,
    Deployment,
    OfferGroup,
    OfferPage,
    SshKey,
    machine_of,
    refusal_of,
    require,
    unwrapped,
)
from infra.clouds.spheron.offers import offers_of
from infra.clouds.wire import Wire, read_as, read_list

__all__ = ["API_KEY", "API_URL", "LIMITS", "NAME", "SpheronCloud"]


@dataclass(frozen=True, slots=True)
class SpheronCloud(ListedCloud):
    fresh_s: float = FRESH_S
    team: str = ""
    _keys: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False)

    @classmethod
    def of(cls, environ: Mapping[str, str], quota: Quota) -> SpheronCloud:
        """The account that the environment names; the key is read when it is used."""
        key = key_of(environ, API_KEY, KEYS_ARE_MADE)
        base = environ.get(API_URL) or BASE
        return cls(Wire("Spheron", base, key, quota, public=frozenset({OFFERS})), team=environ.get(TEAM_ID, ""))

    @property
    def name(self) -> str:
        return NAME

    @property
    def ability(self) -> Ability:
        return Ability(
            rents=True,
            markets=frozenset(Market),
            host=HostKind.VM,
            cannot=(
                "say beforehand that a spot machine will be taken back",
                "be told to run something at first boot on most offers",
                "promise that what it lists is in stock",
            ),
        )

    async def offers(self) -> Sequence[Offer]:
        """What is for sale, without what turned out to be sold out a moment ago."""
        groups: list[OfferGroup] = []
        page, pages = 1, 1
        while page <= pages:
            reply = await self.wire.ask("GET", OFFERS, params={"page": page, "limit": PAGE})
            require(reply, "its offers")
            answer = read_as(OfferPage, reply.data, "Spheron's list of offers")
            groups += answer.data
            pages = answer.totalPages
            page += 1
        blocked = await self.wire.quota.blocked()
        return [offer for group in groups for offer in offers_of(group) if offer.id not in blocked]

    async def create(self, spec: MachineSpec) -> Machine:
        terms = dict(spec.offer.terms)
        body: dict[str, JsonValue] = {
            "name": spec.name,
            "provider": terms["provider"],
            "offerId": terms["offerId"],
            "gpuType": terms["gpuType"],
            "gpuCount": spec.offer.gpus,
            "region": spec.offer.region,
            "operatingSystem": terms["operatingSystem"],
            "instanceType": INSTANCE_TYPES[spec.offer.market],
            "sshKeyId": await self._ssh_key(spec),
            "teamId": await self._team(),
        }
        try:
            reply = await self.wire.order("/api/deployments", body, spec.name)
        finally:
            self.seen.forget()
        if not reply.ok:
            refusal = refusal_of(reply)
            if reply.status == 400 and any(word in refusal.error.lower() for word in NO_STOCK):
                await self.wire.quota.block(spec.offer.id, BLOCKED_S)
                what = f"{spec.offer.gpu} in {spec.offer.region} ({spec.offer.market})"
                raise NoStockError(
                    f"{spec.name}: Spheron lists {what}, and has none: {refusal.error}. It is left aside for "
                    f"{BLOCKED_S / 60:.0f} minutes"
                )
            require(reply, spec.name)
        try:
            return machine_of(read_as(Deployment, unwrapped(reply.data, "deployment"), f"{spec.name}'s deployment"))
        except CloudError as error:
            raise OutcomeUnknownError(str(error)) from None  # it was rented, whatever the answer looks like

    async def look(self, machine_id: str) -> Observed:
        try:
            known = next((machine for machine in await self.alive() if machine.id == machine_id), None)
            if known:
                return Observed(Presence.THERE, known)
            reply = await self.wire.ask("GET", f"/api/deployments/{machine_id}")
            if reply.status == 404:
                return Observed(Presence.GONE, reason="Spheron knows no such deployment")
            require(reply, machine_id)
            found = read_as(Deployment, unwrapped(reply.data, "deployment"), f"deployment {machine_id}")
        except CloudError as error:
            return Observed(Presence.UNKNOWN, reason=str(error))
        if found.status not in GONE:
            return Observed(Presence.THERE, machine_of(found))
        taken = found.status == TAKEN_BACK
        return Observed(Presence.GONE, reason="taken back by Spheron" if taken else found.status, taken_back=taken)

    async def delete(self, machine_id: str) -> None:
        try:
            reply = await self.wire.ask("DELETE", f"/api/deployments/{machine_id}")
        finally:
            self.seen.forget()
        if reply.ok or reply.status == 404:
            return
        refusal = refusal_of(reply)
        status = refusal.currentStatus or ""
        if reply.status == 400 and status and status not in {*ALIVE, *STOPPED}:
            return
        if reply.status == 400 and refusal.canTerminate is False and refusal.timeRemaining is not None:
            until = datetime.now(UTC) + timedelta(minutes=refusal.timeRemaining)  # minutes: assumed
            raise TooEarlyError(
                f"{machine_id}: Spheron keeps it, and has it paid, for {refusal.timeRemaining:g} more minutes "
                f"(a minimum of {refusal.minimumRuntime or 0:g}), until {until:%H:%M:%S} UTC",
                until,
            )
        require(reply, machine_id)

    async def listed(self) -> tuple[Machine, ...]:
        """Answered as a bare list or in pages, by an account's age it seems."""
        found: list[Deployment] = []
        page, pages = 1, 1
        while page <= pages:
            reply = await self.wire.ask("GET", "/api/deployments", params={"page": page, "limit": PAGE})
            require(reply, "its deployments")
            data = reply.data
            if isinstance(data, dict):
                total = data.get("totalPages")
                pages = total if isinstance(total, int) else 1
                data = data.get("data", data.get("deployments"))
            found += read_list(Deployment, data, "Spheron's list of deployments")
            page += 1
        return tuple(machine_of(each) for each in found if each.status not in GONE)

    async def _ssh_key(self, spec: MachineSpec) -> str:
        """The id of the account's entry for the key; added if it is not there, and none is ever taken away."""
        if not spec.public_key:
            raise CloudError(f"{spec.name}: the stack has no SSH key; run `make deploy`, which makes one")
        async with self._keys:  # ten machines at once register it once
            reply = await self.wire.ask("GET", "/api/ssh-keys")
            require(reply, "its SSH keys")
            keys = read_list(SshKey, unwrapped(reply.data, "data"), "Spheron's list of SSH keys")
            wanted = spec.public_key.split()[:2]
            if known := next((key for key in keys if key.publicKey.split()[:2] == wanted), None):
                return known.id
            body: dict[str, JsonValue] = {"name": _key_name(spec.name), "publicKey": spec.public_key.strip()}
            added = await self.wire.ask("POST", "/api/ssh-keys", body)  # a second one would do no harm
            require(added, "the stack's SSH key")
            return read_as(SshKey, unwrapped(added.data, "data"), "the SSH key that was added").id

    async def _team(self) -> str:
        """Documented as optional, and wanted all the same."""
        if self.team:
            return self.team
        reply = await self.wire.ask("GET", "/api/balance")
        require(reply, "its balance")
        teams = read_as(Balance, reply.data, "Spheron's balance").teams
        current = next((team for team in teams if team.isCurrentTeam), next(iter(teams), None))
        if current is None:
            raise CloudError(f"the account of {API_KEY} is in no team; make one on {BASE}, or name one by {TEAM_ID}")
        return current.teamId


def _key_name(machine: str) -> str:
    """`lp-<stack's id>`: who looks at the account's keys sees whose it is."""
    return "-".join(machine.split("-")[:2])
