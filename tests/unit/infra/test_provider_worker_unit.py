"""What a worker's process is told, and what it is not."""

from __future__ import annotations

from pathlib import PurePath

import pytest

from infra.hosts import Unit
from infra.provider.worker_host import WorkerHostInputs, WorkerInputs, worker_unit
from infra.stack import TINY, CloudName
from infra.stack.description import DescriptionError
from worker.contract import Metadata

ROOT = PurePath("/machine")


def unit(
    model: str,
    *,
    device: str = "cpu",
    token: str = "fingerprint",
    code: str = "c1",
    accept_license: bool = False,
    metadata: Metadata = Metadata.ALL,
    blocked_share: float | None = None,
) -> Unit:
    worker = WorkerInputs(name="interactive-1", device=device, port=8101, token=token, setting="first_port")
    inputs = WorkerHostInputs(
        machine="lp-x-interactive-1-g1",
        cloud=CloudName.LOCAL,
        program=("python", "-m", "worker"),
        code=code,
        model=model,
        engine="reference",
        accept_license=accept_license,
        metadata=metadata,
        blocked_share=blocked_share,
        workers=(worker,),
        ready_within_s=60,
    )
    return worker_unit(inputs, worker, ROOT, {"WEIGHTS": "/weights"})


def test_a_worker_listens_on_loopback_alone_and_reads_its_token_from_a_file() -> None:
    described = unit(TINY)
    assert [listen.host for listen in described.listens] == ["127.0.0.1"]
    assert described.env["LETTERPRESS_WORKER_HOST"] == "127.0.0.1"
    assert described.env["LETTERPRESS_WORKER_TOKEN_FILE"].startswith(f"{ROOT}/secrets/")
    assert "fingerprint" not in str(described.env)


def test_only_a_worker_that_may_have_to_ask_the_hub_is_handed_its_token() -> None:
    assert unit(TINY).inherits == ()
    assert unit("owner/weights", device="cuda:0").inherits == ("HF_TOKEN",)
    assert "HF_TOKEN" not in unit("owner/weights").env


def test_the_stack_files_yes_to_the_licence_reaches_the_worker_and_nothing_else_does() -> None:
    assert unit("owner/weights", accept_license=True).env["LETTERPRESS_WORKER_ACCEPT_LICENSE"] == "true"
    assert "LETTERPRESS_WORKER_ACCEPT_LICENSE" not in unit("owner/weights").env


def test_what_files_say_of_themselves_is_the_stack_files_choice() -> None:
    assert unit(TINY, metadata=Metadata.SETTINGS).env["LETTERPRESS_WORKER_METADATA"] == "settings"
    assert "LETTERPRESS_WORKER_METADATA" not in unit(TINY).env


def test_what_looks_refused_is_the_stack_files_choice() -> None:
    assert unit(TINY, blocked_share=0).env["LETTERPRESS_WORKER_BLOCKED_SHARE"] == "0.0"
    assert "LETTERPRESS_WORKER_BLOCKED_SHARE" not in unit(TINY).env


def test_a_reference_in_the_model_is_resolved_at_the_moment_of_use() -> None:
    assert unit("${WEIGHTS}/v4").env["LETTERPRESS_WORKER_MODEL"] == "/weights/v4"
    with pytest.raises(DescriptionError, match="NOWHERE is not set"):
        unit("${NOWHERE}/v4")


def test_new_code_or_a_new_token_restarts_a_worker_and_nothing_else_does() -> None:
    assert unit(TINY) == unit(TINY)
    assert unit(TINY, code="c2").config != unit(TINY).config
    assert unit(TINY, token="other").config != unit(TINY).config
    assert unit(TINY, code="c2").fingerprint == unit(TINY).fingerprint
