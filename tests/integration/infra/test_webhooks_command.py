"""`letterpress webhooks`, against a real router."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.admin.webhooks import WebhooksError, replay, show
from infra.deployment import Deployment
from infra.paths import StackPaths
from infra.secrets import ADMIN_KEY
from infra.stack import StackDescription
from router.contract import DeliveryState, JobRequest
from tests.emulators.paced_process import paced_worker
from tests.emulators.receiver import receiver
from tests.integration.router.served import ADMIN_KEY as KEY
from tests.integration.router.served import ServedRouter, served_router, until


def deployment(folder: Path, router: ServedRouter) -> Deployment:
    port = int(router.admin_url.rpartition(":")[2])
    description = {
        "name": "s",
        "model": "tiny",
        "router": {"admin": {"port": port}},
        "pools": {"a": {"machines": 1, "first_port": 1}},
    }
    paths = StackPaths(folder / "s", folder / "run")
    paths.secrets.mkdir(parents=True)
    (paths.secrets / ADMIN_KEY).write_text(KEY)
    return Deployment(StackDescription.model_validate(description), paths)


async def test_the_dead_are_listed_with_the_reason_and_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with paced_worker() as worker, served_router(WEBHOOK_ALLOW="127.0.0.1") as router, receiver() as there:
        here = deployment(tmp_path, router)
        await show(here, None, 10)
        assert capsys.readouterr().out == "No webhooks.\n"
        await router.use("w-1", worker)
        there.answers.append(410)
        async with router.client() as client, router.admin() as admin:
            await client.submit(JobRequest(prompt="a", width=256, height=256, webhook=there.url()))

            async def dead() -> bool:
                return bool(await admin.webhooks(DeliveryState.DEAD))

            await until(dead, "the receiver's 410 is recorded")
            await show(here, DeliveryState.DEAD, 10)
            shown = capsys.readouterr().out.splitlines()
            assert len(shown) == 2
            name = shown[1].split()[0]
            assert name.startswith("msg_")
            assert "410 Gone: this URL gets nothing more" in shown[1]
            assert shown[1].endswith(there.url()), "into a pipe nothing is cut"
            await replay(here, [name])
            assert capsys.readouterr().out == f"{name} is due again.\n"
            await there.has(2)
            await replay(here, [])
            assert capsys.readouterr().out == "0 dead webhooks are due again.\n"
            with pytest.raises(WebhooksError, match="there is no webhook msg_none"):
                await replay(here, ["msg_none"])
