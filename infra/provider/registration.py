"""Registration: the router knows a worker, and which pool it serves.

The router keeps it in its store, so it outlives the router's restarts. The worker's token goes from the
stack's secrets to the router's admin app and into no property.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from infra.clouds import Access
from infra.hosts import Progress
from infra.provider import tunnels
from infra.provider.place import LEAVE, ORDINARY, RouterPlace
from infra.provider.resource import Condition, Found, Inputs, ProviderError
from infra.provider.site import TUNNELLED, Site
from infra.secrets import worker_token
from infra.ssh.target import Patience
from router.client import AdminClient, RouterAwayError, RouterClientError, RouterNotFoundError, RouterUnavailableError
from router.contract import WorkerRegistration, WorkerView

DRAIN_S = 30.0
"""How long a removed worker may take for what it is at; then the job gets another attempt elsewhere."""
POLL_S = 0.3


class RegistrationInputs(Inputs):
    """`token` is the fingerprint of the worker's token; `admin_url` is on the loopback of the router's host, which is
    reached by `router` unless it is this computer."""

    worker: str
    pool: str
    url: str
    token: str
    admin_url: str
    router: Access | None = None


class RegistrationState(RegistrationInputs, Found):
    pass


@dataclass(frozen=True, slots=True)
class RegistrationResource:
    site: Site
    inputs: type[RegistrationInputs] = RegistrationInputs
    state: type[RegistrationState] = RegistrationState
    replaced_by: frozenset[str] = frozenset({"worker"})

    async def ensure(
        self, inputs: RegistrationInputs, _before: RegistrationState | None, progress: Progress
    ) -> RegistrationState:
        token = self.site.secrets.ensure(worker_token(inputs.worker))
        if inputs.url.startswith(TUNNELLED):
            await tunnels.until_up(self._place(inputs), inputs.worker, progress)
        url = self._place(inputs).worker_url(inputs.url)
        registration = WorkerRegistration(url=url, token=token, pool=inputs.pool)
        progress(f"telling the router of {inputs.worker} in pool {inputs.pool}")
        try:
            async with self._admin(inputs) as admin:
                view = await admin.register(inputs.worker, registration)
        except RouterClientError as error:
            raise ProviderError(
                f"{inputs.worker} could not be registered: {error}. `make logs` shows the router's side; "
                "`make deploy` tries again"
            ) from error
        return self._seen(RegistrationState.model_validate(inputs.model_dump()), view)

    async def read(self, state: RegistrationState) -> RegistrationState | None:
        try:
            async with self._admin(state) as admin:
                return self._seen(state, await admin.worker(state.worker))
        except RouterNotFoundError:
            return None
        except RouterClientError as error:  # the router is away, or is not ours: nothing is known
            return state.model_copy(update={"condition": Condition.UNKNOWN, "reason": str(error)})

    async def delete(self, state: RegistrationState, progress: Progress) -> None:
        """Drain, then remove. A router that is away has nobody to send to this worker."""
        await self._forget(state, progress)
        if state.url.startswith(TUNNELLED):
            await tunnels.close_way(self._place(state, LEAVE), state.worker, progress)

    async def _forget(self, state: RegistrationState, progress: Progress) -> None:
        try:
            async with self._admin(state, LEAVE) as admin:
                progress("draining")
                await self._drain(admin, state.worker, progress)
                await admin.remove(state.worker)
        except (RouterAwayError, RouterUnavailableError) as error:
            progress(f"not removed from the router, which is away ({error})")
        except RouterClientError as error:
            raise ProviderError(f"{state.worker} could not be removed from the router: {error}") from error

    async def _drain(self, admin: AdminClient, worker: str, progress: Progress) -> None:
        try:
            async with asyncio.timeout(DRAIN_S):
                while (view := await admin.drain(worker)).running:
                    progress(f"draining: {view.running} job(s) still running")
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            progress("still busy; its job gets another attempt elsewhere")
        except RouterNotFoundError:
            pass  # forgotten already

    def _admin(self, inputs: RegistrationInputs, patience: Patience = ORDINARY) -> AdminClient:
        return self._place(inputs, patience).admin(inputs.admin_url)

    def _place(self, inputs: RegistrationInputs, patience: Patience = ORDINARY) -> RouterPlace:
        return RouterPlace(self.site, inputs.router, patience)

    def _seen(self, state: RegistrationState, view: WorkerView) -> RegistrationState:
        return registered(state, view, self._place(state).worker_url(state.url))


def registered(state: RegistrationState, view: WorkerView, url: str) -> RegistrationState:
    """The state with what the router says of the worker, which it should know under `url`."""
    differs = [
        name
        for name, here, there in (
            ("url", url, view.url),
            ("pool", state.pool, view.pool),
            ("token", state.token, view.token_fingerprint),
        )
        if here != there
    ]
    if view.draining and not differs:
        # A killed upgrade left it so, and it would never be given a job again; registering ends that.
        return state.model_copy(update={"condition": Condition.DIFFERENT, "reason": "it drains, and takes no jobs"})
    return state.model_copy(
        update={
            "condition": Condition.DIFFERENT if differs else Condition.REGISTERED,
            "reason": f"the router has another {', '.join(differs)}" if differs else "",
        }
    )
