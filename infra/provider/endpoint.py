"""Endpoint: a RunPod serverless endpoint, with its template and the volume that keeps its weights.

It needs no host and no router: RunPod starts workers when jobs come and ends them when none do. The hub's token
is RunPod's own secret, named here; its value is in no state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from infra.clouds import CloudError
from infra.clouds.runpod_serverless import EndpointSpec, EndpointView, Serverless, differs
from infra.hosts import Progress
from infra.provider.resource import Condition, Found, IncompleteError, Inputs
from infra.stack import resolve


class EndpointInputs(Inputs):
    """`name` holds the stack's id; `image` may be a reference."""

    name: str
    image: str
    gpu_pools: tuple[str, ...]
    least: int
    most: int
    idle_s: int
    settings: dict[str, str]
    hub_secret: str
    volume_gb: int
    data_center: str


class EndpointState(EndpointInputs, Found):
    """`url` takes jobs (`POST`, with a key of the RunPod account)."""

    endpoint_id: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class EndpointResource:
    """`account` gives the RunPod account; an image's `${NAME}` is looked up in `environ`."""

    account: Callable[[], Serverless]
    environ: Mapping[str, str]
    inputs: type[EndpointInputs] = EndpointInputs
    state: type[EndpointState] = EndpointState
    replaced_by: frozenset[str] = frozenset({"name", "data_center", "volume_gb"})

    async def ensure(self, inputs: EndpointInputs, _before: EndpointState | None, progress: Progress) -> EndpointState:
        progress("its volume, its template, itself")
        begun = EndpointState.model_validate(inputs.model_dump())
        try:
            return _seen(begun, await self.account().ensure(self._spec(inputs)))
        except CloudError as error:
            # A volume may be there already, and is paid for: it must be remembered.
            raise IncompleteError(str(error), begun) from error

    async def read(self, state: EndpointState) -> EndpointState | None:
        try:
            found = await self.account().find(state.name)
        except CloudError as error:
            return state.model_copy(update={"condition": Condition.UNKNOWN, "reason": str(error)})
        if found is None:
            # Kept as long as anything of it may be there: the next deploy makes it whole, a destroy takes it away.
            return state.model_copy(update={"condition": Condition.STOPPED, "reason": "RunPod does not list it"})
        seen = _seen(state, found)
        if differs(self._spec(state), found):
            return seen.model_copy(update={"condition": Condition.DIFFERENT, "reason": "changed by somebody else"})
        return seen

    async def delete(self, state: EndpointState, progress: Progress) -> None:
        progress("giving it back, and the volume with its weights")
        await self.account().delete(state.name)

    def _spec(self, inputs: EndpointInputs) -> EndpointSpec:
        return EndpointSpec(
            name=inputs.name,
            image=resolve(inputs.image, self.environ, "serverless.image"),
            pools=inputs.gpu_pools,
            least=inputs.least,
            most=inputs.most,
            idle_s=inputs.idle_s,
            env=tuple(sorted(inputs.settings.items())),
            hub_secret=inputs.hub_secret,
            volume_gb=inputs.volume_gb,
            data_center=inputs.data_center,
        )


def _seen(state: EndpointState, found: EndpointView) -> EndpointState:
    return state.model_copy(
        update={
            "condition": Condition.RUNNING,
            "reason": "",
            "endpoint_id": found.id,
            "url": found.requestUrls.run,
        }
    )
