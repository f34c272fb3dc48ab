"""What `letterpress doctor` finds: each trouble by its own line, and nothing where all is well."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.deployment import Deployment
from infra.doctor import Finding, Surroundings, Verdict, examine, worst
from infra.doctor.checks import CHECKS, SKEW_S, judged_clock, judged_driver
from infra.doctor.command import targets
from infra.paths import StackPaths
from infra.setup.engine import find_engine
from infra.ssh.target import Target
from infra.stack import parse
from tests.authority import DAY, Authority
from tests.ports import free_ports
from tests.sshd import sshd

GOOD = """\
name: mine
model: tiny
router: {{edge: {{port: {0}}}, admin: {{port: {1}}}}}
pools:
  interactive: {{machines: 1, first_port: {2}}}
"""


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    description = parse(GOOD.format(*free_ports(3)), "mine.yaml", tmp_path)
    return Surroundings(description, StackPaths(tmp_path / "home" / "mine", tmp_path / "run"), {}, Path("/bin/pulumi"))


def described(around: Surroundings, more: str, environ: dict[str, str] | None = None) -> Surroundings:
    text = GOOD.format(*free_ports(3)).replace("model: tiny\n", "" if "model:" in more else "model: tiny\n") + more
    return replace(around, description=parse(text, "mine.yaml", around.paths.root.parent), environ=environ or {})


async def troubles(around: Surroundings, check: str) -> list[Finding]:
    chosen = [(name, each) for name, each in CHECKS if name == check]
    assert chosen
    return [finding for finding in await examine(around, chosen) if finding.verdict is not Verdict.OK]


async def test_a_machine_on_which_a_deploy_will_go_well_has_no_trouble(around: Surroundings) -> None:
    findings = await examine(around, CHECKS)
    assert {finding.check for finding in findings} >= {"disk", "keys", "licence", "clock", "ports", "state", "driver"}
    assert [finding for finding in findings if finding.verdict is Verdict.FAIL and finding.check != "tools"] == []
    assert not around.paths.root.exists(), "looking changes nothing"


async def test_a_port_in_somebodys_hands_is_named_with_its_holder_and_its_setting(around: Surroundings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", around.description.router.admin.port))
        taken.listen()
        (found,) = await troubles(around, "ports")
    assert f"process {os.getpid()}" in found.what
    assert "router.admin.port" in found.todo


async def test_a_reference_to_nothing_and_an_open_key_are_failures(around: Surroundings) -> None:
    lacking = described(around, "model: ${WEIGHTS}/nf4\n")
    assert "WEIGHTS is not set" in (await troubles(lacking, "keys"))[0].what
    assert await troubles(replace(lacking, environ={"WEIGHTS": "/disk"}), "keys") == []
    images = (
        "pod_image: ${POD}\nimage: {pull: r/w, username: '${WHO}', password: '${PASS}'}\n"
        "serverless: {images: {image: '${JOBS}', gpu_pools: [ADA_80_PRO], data_center: EU-RO-1}}\n"
    )
    said = " ".join(finding.what for finding in await troubles(described(around, images), "keys"))
    assert all(f"{name} is not set" in said for name in ("POD", "WHO", "PASS", "JOBS")), said
    archived = described(around, "image: {archive: '${TAR}'}\n")
    assert "TAR is not set" in (await troubles(archived, "keys"))[0].what
    key = around.paths.secrets / "api-key"
    key.parent.mkdir(parents=True)
    key.write_text("lp_")
    key.chmod(0o644)
    (found,) = await troubles(around, "keys")
    assert found.todo == f"chmod 600 {key}"


async def test_gated_weights_want_a_yes_and_a_token(around: Surroundings) -> None:
    gated = described(around, "model: owner/name\n")
    assert [finding.verdict for finding in await troubles(gated, "licence")] == [Verdict.WARN, Verdict.WARN]
    own = "model: owner/name\ncloud: hosts\nhosts: {h: {address: 127.0.0.1, gpus: 1}}\n"
    remote = described(around, own)
    assert [finding.verdict for finding in await troubles(remote, "licence")] == [Verdict.FAIL, Verdict.WARN]
    accepted = described(around, "model: owner/name\naccept_license: true\n", {"HF_TOKEN": "hf_x"})
    assert await troubles(accepted, "licence") == []


async def test_a_certificate_that_runs_out_soon_is_a_warning_and_one_that_has_a_failure(
    around: Surroundings, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    for good_for, verdict in ((5 * DAY, Verdict.WARN), (-DAY, Verdict.FAIL)):
        chain, key = authority.sign("a.example.com", good_for)
        text = GOOD.format(*free_ports(3)).replace(
            "router: {edge: {", f"router: {{edge: {{tls: {{certificate: {chain}, key: {key}}}, "
        )
        served = replace(around, description=parse(text, "mine.yaml", tmp_path))
        (found,) = await troubles(served, "certificate")
        assert found.verdict is verdict


@pytest.mark.engine
async def test_a_backend_that_does_not_answer_is_said_in_its_own_words(around: Surroundings) -> None:
    (port,) = free_ports(1)
    url = f"s3://b?region=x&endpoint=http://127.0.0.1:{port}&use_path_style=true"
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "sesame", "AWS_MAX_ATTEMPTS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        (found,) = await troubles(replace(described(around, f"state: {url}\n"), engine=find_engine()), "state")
    assert found.verdict is Verdict.FAIL
    assert "connection refused" in found.what
    assert "sesame" not in found.what


async def test_a_machine_is_asked_for_its_door_its_clock_and_its_driver(around: Surroundings, tmp_path: Path) -> None:
    async with sshd(tmp_path / "machine") as server:
        (tmp_path / "machine/authorized_keys").write_bytes(server.client_key.with_suffix(".pub").read_bytes())
        target = Target("mine-1", server.address, server.port, server.user, server.client_key)
        findings = await examine(replace(around, targets={"mine-1": target}), [CHECKS[-1]])
        assert [(finding.check, finding.verdict) for finding in findings[:2]] in (
            [("ssh", Verdict.OK), ("clock", Verdict.OK)],
            [("ssh", Verdict.FAIL)],  # an ordinary user without sudo
        )
        assert not around.paths.known_hosts.exists(), "pinned by a deploy alone"
        (tmp_path / "machine/authorized_keys").write_text("")
        (refused,) = await troubles(replace(around, targets={"mine-1": target}), "ssh")
    assert "authorized_keys" in refused.what


async def test_the_hosts_of_a_stack_file_are_looked_at_under_the_names_that_it_gives_them(
    around: Surroundings, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    text = GOOD.format(*free_ports(3)) + f"cloud: hosts\nhosts: {{left: {{address: 127.0.0.1, port: {port}}}}}\n"
    deployment = Deployment(parse(text, "mine.yaml", tmp_path), around.paths)
    (name,) = found = targets(deployment)
    assert (name, found[name].port) == ("left", port)
    assert await troubles(replace(around, description=deployment.description), "keys") == []


@given(st.floats(-1e6, 1e6))
def test_a_clock_is_wrong_in_either_direction_alike(ahead_s: float) -> None:
    assert (judged_clock("it", ahead_s).verdict is Verdict.OK) == (abs(ahead_s) <= SKEW_S)
    assert judged_clock("it", ahead_s).verdict is judged_clock("it", -ahead_s).verdict


async def test_a_computer_whose_gpus_work_is_asked_for_a_compiler(
    around: Surroundings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    gpus = described(around, "model: owner/name\n")

    async def asked(whose: Surroundings) -> list[str]:
        return [found.todo for found in await troubles(whose, "tools") if found.what == "a C compiler is not here"]

    assert "apt-get install gcc" in (await asked(gpus))[0]
    assert await asked(around) == [], "a CPU builds no kernels"
    (tmp_path / "clang").touch(mode=0o755)
    assert await asked(gpus) == []


def test_what_the_driver_says_decides() -> None:
    assert judged_driver(0, "580.1, NVIDIA H100\n580.1, NVIDIA H100\n", 2).verdict is Verdict.OK
    assert "1 GPU(s) are here, the stack wants 2" in judged_driver(0, "580.1, NVIDIA H100\n", 2).what
    assert "couldn't communicate" in judged_driver(9, "NVIDIA-SMI has failed: couldn't communicate\n", 1).what


def test_the_worst_of_all_counts() -> None:
    assert worst([]) is Verdict.OK
    ok, warn, fail = (Finding("x", verdict, "") for verdict in Verdict)
    assert worst([ok, warn, ok]) is Verdict.WARN
    assert worst([warn, fail, ok]) is Verdict.FAIL


def test_a_script_reads_it_as_json_and_by_its_exit_code(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD.format(*free_ports(3)).replace("model: tiny", "model: ${NOWHERE}/x"))
    program = [sys.executable, "-c", "from infra.cli import main; main()", "doctor", str(file), "--json"]
    environment = {**os.environ, "LETTERPRESS_HOME": str(tmp_path / "home"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1, done.stderr
    assert {"check": "keys", "verdict": "fail"}.items() <= next(
        finding for finding in json.loads(done.stdout) if "NOWHERE" in finding["what"]
    ).items()


async def test_of_a_router_on_a_machine_of_its_own_the_machine_is_looked_at_and_no_port_here(
    around: Surroundings, tmp_path: Path
) -> None:
    (taken,) = free_ports(1)
    text = f"""\
name: mine
cloud: hosts
model: tiny
hosts: {{w: {{address: 192.0.2.10}}}}
router:
  host: {{address: 192.0.2.5, user: ubuntu}}
  edge: {{port: {taken}, tls: {{domain: a.example.com, accept_terms: true}}}}
pools: {{interactive: {{machines: 1, first_port: 9100}}}}
"""
    deployment = Deployment(parse(text, "mine.yaml", tmp_path), around.paths)
    assert {name: found.address for name, found in targets(deployment).items()} == {
        "w": "192.0.2.10",
        "router.host": "192.0.2.5",
    }
    elsewhere = replace(around, description=deployment.description)
    with socket.create_server(("0.0.0.0", taken)):  # noqa: S104 - whoever has it, it is not asked for here
        assert await troubles(elsewhere, "ports") == []
    assert not [each for each in await troubles(elsewhere, "tools") if "certbot" in each.what or "nginx" in each.what]
