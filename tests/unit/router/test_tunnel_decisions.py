"""What ssh is told, when it is tried again, and what its last words mean."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.contract import SOCKET_PATH_MAX, TunnelMachine, TunnelState, TunnelsView, forward_only
from router.contract.tunnels import STALE
from router.tunnels.backoff import LONGEST_S, REFUSED_S, Failure, explain, pause_s
from router.tunnels.command import ALIVE_EVERY_S, ALIVE_MISSES, Places, connect, forward, known_hosts
from router.tunnels.status import read_status

PLACES = Places(Path("/run/lp/t"), Path("/s/tunnel-key"))
MACHINE = TunnelMachine(
    id="lp-abc-m1-g2", host="203.0.113.9", port=2222, user="letterpress", host_key="ssh-ed25519 AAAA", workers={"w": 80}
)


def options(argv: tuple[str, ...]) -> dict[str, str]:
    pairs = (argv[at + 1] for at, word in enumerate(argv) if word == "-o")
    return dict(pair.split("=", 1) for pair in pairs)


def test_a_machine_is_known_by_its_id_and_by_nothing_else() -> None:
    told = options(connect(MACHINE, PLACES))
    assert told["HostKeyAlias"] == "lp-abc-m1-g2"
    assert told["StrictHostKeyChecking"] == "yes"
    assert (told["GlobalKnownHostsFile"], told["CheckHostIP"]) == ("/dev/null", "no")
    assert told["HostKeyAlgorithms"] == "ssh-ed25519"
    assert known_hosts(MACHINE) == "lp-abc-m1-g2 ssh-ed25519 AAAA\n"


def test_nobodys_own_configuration_agent_or_keys_are_asked() -> None:
    argv = connect(MACHINE, PLACES)
    assert argv[:3] == ("ssh", "-F", "none")
    assert (options(argv)["IdentitiesOnly"], options(argv)["IdentityAgent"]) == ("yes", "none")
    assert options(argv)["BatchMode"] == "yes"


def test_a_dead_machine_is_given_up_within_ten_seconds() -> None:
    assert ALIVE_EVERY_S * (ALIVE_MISSES + 2) < 10


def test_a_worker_is_reached_on_its_machines_loopback() -> None:
    way = forward(MACHINE, PLACES, "w", 80)
    assert way[way.index("-L") + 1] == "/run/lp/t/w/w:127.0.0.1:80"


@given(st.from_regex(r"[a-z][a-z0-9-]{0,62}", fullmatch=True), st.from_regex(r"[a-z][a-z0-9-]{0,62}", fullmatch=True))
def test_every_worker_has_a_socket_of_its_own_whose_path_is_short(one: str, other: str) -> None:
    assert (PLACES.socket(one) == PLACES.socket(other)) is (one == other)
    # The longest run directory that infra.paths leaves room for, and ssh's own addition while it binds.
    assert len(os.fsencode(PLACES.socket(one))) <= SOCKET_PATH_MAX - 60


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_pauses_grow_to_a_bound_and_are_drawn(failures: int, draw: float) -> None:
    pause = pause_s(Failure("cut"), failures, draw)
    assert 0.25 <= pause <= LONGEST_S
    assert pause <= pause_s(Failure("cut"), failures + 1, draw)
    assert pause_s(Failure("changed", TunnelState.REFUSED), failures, draw) == REFUSED_S


@pytest.mark.parametrize(
    ("said", "reason", "state"),
    [
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "pinned", "refused"),
        ("No ED25519 host key is known for m.\nHost key verification failed.", "pinned", "refused"),
        ("u@h: Permission denied (publickey).", "is its line in authorized_keys?", "waiting"),
        ("Timeout, server h not responding.", "m fell silent", "waiting"),
        ("ssh: connect to host h port 22: Connection refused", "port 22: Connection refused", "waiting"),
        ("", "ssh ended with 255 and said nothing", "waiting"),
    ],
)
def test_last_words_are_put_so_that_one_knows_what_to_do(said: str, reason: str, state: str) -> None:
    failure = explain("m", said, 255)
    assert reason in failure.reason
    assert failure.state == state


def test_the_services_key_may_forward_to_its_workers_and_do_nothing_else() -> None:
    assert forward_only("ssh-ed25519 AAAA tunnels\n", [8001, 8000, 8000]) == (
        'restrict,port-forwarding,permitopen="127.0.0.1:8000",permitopen="127.0.0.1:8001" ssh-ed25519 AAAA tunnels'
    )


def test_a_service_that_has_fallen_silent_is_told_from_one_that_is_well(tmp_path: Path) -> None:
    file, now = tmp_path / "status.json", datetime.now(UTC)
    assert "does it run?" in read_status(file).trouble
    file.write_text(TunnelsView(written_at=now).model_dump_json())
    assert read_status(file, now + STALE).trouble == ""
    assert "has written nothing since" in read_status(file, now + STALE + timedelta(seconds=1)).trouble
    file.write_text("{")
    assert "cannot be read" in read_status(file).trouble
    assert read_status(None) == TunnelsView()
