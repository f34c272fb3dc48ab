"""When a connection that failed is tried again, and what its failure means. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from router.contract import TunnelState

FIRST_S = 0.5
LONGEST_S = 30.0
REFUSED_S = 300.0
"""After a host key that is not the pinned one: trying harder helps nobody, and a new description ends the wait."""
STEADY_S = 60.0
"""A connection that stood this long was a good one: failures before it are forgotten."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a connection is not (or no longer) there, for a person, and what that makes of the tunnel."""

    reason: str
    state: TunnelState = TunnelState.WAITING


def pause_s(failure: Failure, failures: int, draw: float) -> float:
    """Seconds until the next try, after so many failures in a row; `draw` is from [0, 1).

    Half of it is drawn, so that a hundred machines behind one broken switch do not come back in one moment.
    """
    if failure.state is TunnelState.REFUSED:
        return REFUSED_S
    return min(LONGEST_S, FIRST_S * 2.0 ** min(failures - 1, 16)) * (0.5 + draw / 2)


def explain(machine: str, said: str, status: int | None) -> Failure:
    """What ssh said on its way out, in words that tell what to do. `status` is its exit status."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said or "Host key verification failed" in said:
        return Failure(
            f"the host key of {machine} is not the one that was pinned: another machine answers at its address, or "
            "somebody is in between. Nothing was sent. If the machine was made anew, describe it with its new key",
            TunnelState.REFUSED,
        )
    last = lines[-1] if lines else f"ssh ended with {status} and said nothing"
    if "Permission denied" in said:
        return Failure(f"{machine} does not accept the tunnel service's key: is its line in authorized_keys? ({last})")
    if "not responding" in said:
        return Failure(f"{machine} fell silent: {last}")
    return Failure(f"{machine}: {last[:300]}")
