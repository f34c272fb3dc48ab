"""Leaving a router's machine: its processes, its data, its keys and its users. It need not answer."""

from __future__ import annotations

from infra import remains
from infra.bootstrap.router.order import leave_script
from infra.clouds import Access
from infra.errors import InfraError
from infra.hosts import Progress
from infra.provider import tunnels
from infra.provider.place import LEAVE, RouterPlace
from infra.provider.resource import ProviderError
from infra.provider.router_inputs import RouterHostState
from infra.provider.router_units import all_names
from infra.ssh.errors import HostKeyChangedError

LEAVE_S = 300.0


async def take_leave(place: RouterPlace, access: Access, progress: Progress) -> None:
    """Take everything of the stack off the machine; what is left on one that does not answer is noted, and told of when
    the command ends (`infra.remains`). Its host key is forgotten in any case."""
    site, there = place.site, RouterPlace(place.site, access, LEAVE)
    script = leave_script(site.stack_id, access.user, there.layout)
    try:
        connection = await there.connect(progress)
        progress("taking everything of the stack off it")
        await connection.run(script, "taking leave", within_s=LEAVE_S)
    except InfraError as error:  # a secret of the user's may be missing, too: whatever it is, the stack goes
        progress("left as it is")
        remains.note(site.paths, place.machine, access, str(error), script)
    else:
        remains.forget(site.paths, place.machine, access)
    site.forget_host_key(place.machine)


async def leave_if_moved(place: RouterPlace, before: RouterHostState, progress: Progress) -> None:
    """Where the description names another place than the one that was used, leave that one.

    The same host key is the same machine under a new address. Raises ProviderError rather than lose what lies on an old
    machine alone; what lies on this computer stays here.
    """
    old, new = before.host, place.access
    if old is None and new is None:
        return
    if old is None:
        progress("ending the router on this computer; what it has kept stays there")
        here = RouterPlace(place.site, None).host()
        for unit in (*all_names(before), tunnels.UNIT):
            await here.remove(unit, progress)
    elif new is None:
        await _leave(place, old, "this computer", before, progress)
    elif (old.address, old.port) != (new.address, new.port):
        try:
            await place.connect(progress)
        except HostKeyChangedError:
            await _leave(place, old, new.address, before, progress)


async def _leave(place: RouterPlace, old: Access, where: str, before: RouterHostState, progress: Progress) -> None:
    if not before.database or "S3_BUCKET" not in before.settings:
        raise ProviderError(
            f"router.host: {where} is another machine than {old.address}, where the router's "
            f"{'images lie' if before.database else 'database and images lie'}. Keep them elsewhere first "
            "(`router.database`, `router.s3`), or `make destroy`, which removes them, and deploy anew"
        )
    progress(f"{where} is another machine than {old.address}, which is left")
    await take_leave(place, old, progress)
