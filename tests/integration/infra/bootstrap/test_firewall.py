"""The firewall of a machine, with real rules: what comes through, and that nobody is shut out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.bootstrap.firewall import Firewall, Seen, parse, rules
from infra.bootstrap.machine import Machine
from infra.bootstrap.step import StepError, go_through
from infra.ssh.connect import connect
from infra.ssh.pins import Pins
from infra.ssh.target import Patience
from tests.hosts import TestMachine
from tests.integration.infra.bootstrap.on_a_machine import target_of, unheard


async def test_nothing_but_ssh_comes_through_the_firewall_also_after_a_restart(
    on: Callable[..., Machine], vm: TestMachine, folder: Path
) -> None:
    await go_through((Firewall(),), on())
    vm.restart()
    server = "import socket,time; s=socket.create_server(('0.0.0.0', 7777)); time.sleep(60)"
    made = await connect(target_of(vm, folder), Pins(folder / "known_hosts"), unheard, Patience(10))
    try:
        await made.run(f'setsid python3 -c "{server}" >/dev/null 2>&1 &', "listening")
        async with asyncio.timeout(20):
            while "7777" not in await made.run("ss -Hltn", "looking"):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        socket.create_connection((vm.address, 22), 5).close()
        with pytest.raises(TimeoutError):
            socket.create_connection((vm.address, 7777), 1)
        listed = await made.run("nft list table inet letterpress", "looking")
        assert "udp dport { 68, 546 } accept" in listed, "or the machine loses its address, of either kind"
        await made.run("nft delete table inet letterpress", "opening it")
        socket.create_connection((vm.address, 7777), 5).close()
    finally:
        made.close()


@pytest.mark.parametrize("kept", [False, True])
async def test_rules_that_shut_us_out_are_taken_back_though_our_session_ends(
    kept: bool, on: Callable[..., Machine], vm: TestMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong port is opened, as a bug of ours would; then nothing that we started on the machine lives on."""
    machine = on()
    await machine.connection.run(
        "rm -f /etc/letterpress/firewall.nft; nft delete table inet letterpress 2>&1 || :", "beginning"
    )
    if kept:
        await go_through((Firewall(),), machine)
    wrong = rules((2222,))
    monkeypatch.setattr("infra.bootstrap.firewall.rules", lambda _: wrong)
    monkeypatch.setattr("infra.bootstrap.firewall.ROLLBACK_S", 4)
    monkeypatch.setattr("infra.ssh.connect.ANSWER_S", 1.0)
    with pytest.raises(StepError, match="nothing comes through its new rules"):
        await go_through((Firewall(),), machine)
    machine.connection.close()
    vm.inside("bash", "-c", "pkill -9 -x sleep; pkill -9 -x sudo; pkill -9 -x sh; :")
    monkeypatch.undo()
    async with asyncio.timeout(30):
        while (said := vm.inside("sh", "-c", "nft list table inet letterpress 2>&1 || :")) and "2222" in said:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert ("tcp dport 22 accept" in said) is kept
    assert ("policy drop" in said) is kept


async def test_every_port_that_sshd_listens_on_stays_open(on: Callable[..., Machine], vm: TestMachine) -> None:
    daemon = "/usr/sbin/sshd -f /dev/null -h /etc/ssh/standin_key -o PidFile=/run/second-sshd"
    vm.inside("sh", "-c", f"{daemon} -o ListenAddress=0.0.0.0:2200 -o ListenAddress=127.0.0.1:2201")
    try:
        assert await go_through((Firewall(),), on()) == ("firewall",)
        listed = await on().connection.run("nft list table inet letterpress", "looking")
        assert "tcp dport { 22, 2200 } accept" in listed
        assert await go_through((Firewall(),), on()) == ()
    finally:
        vm.inside("sh", "-c", "kill $(cat /run/second-sshd)")
    assert await go_through((Firewall(),), on()) == ("firewall",)


def test_where_systemd_holds_sshds_port_it_is_found_there() -> None:
    said = """\
LISTEN 0 4096 127.0.0.53%lo:53 0.0.0.0:* users:(("systemd-resolve",pid=4,fd=14))
LISTEN 0 128 127.0.0.1:6010 0.0.0.0:* users:(("sshd",pid=9,fd=7))
LISTEN 0 4096 *:8080 *:* users:(("python3",pid=12,fd=3))
Id=ssh.socket
Listen=0.0.0.0:2222 (Stream)
Listen=[::]:2222 (Stream)
ActiveState=active
UnitFileState=enabled

Id=sshd.socket
Listen=[::]:2200 (Stream)
ActiveState=inactive
UnitFileState=disabled

Id=letterpress-firewall.service
ActiveState=active
UnitFileState=enabled

rules 0123456789abcdef
drops 1
trials 0
"""
    assert parse(said) == Seen(frozenset({2222}), "0123456789abcdef", sound=True)
