"""The steps of a router's machine, in order, and what takes all of them back."""

from __future__ import annotations

from infra.bootstrap import leave
from infra.bootstrap.firewall import Firewall
from infra.bootstrap.router.accounts import Users
from infra.bootstrap.router.code import Code
from infra.bootstrap.router.machine import RouterMachine
from infra.bootstrap.router.packages import Packages
from infra.bootstrap.step import Step
from infra.clouds import HostKind
from infra.hosts.layout import Layout


def router_steps(ports: tuple[int, ...]) -> tuple[Step[RouterMachine], ...]:
    return (Packages(), Users(), Firewall(ports), Code())


def leave_script(stack_id: str, user: str, layout: Layout) -> str:
    """For `sh`, as root, any number of times, as `infra.bootstrap.leave` has it; and with it its users' folders below
    /run and they themselves. Packages stay: others may use them by now."""
    accounts = layout.accounts
    users = " ".join((accounts.edge, accounts.router)) if accounts else ""
    return f"""\
(
{leave.leave_script(stack_id, user, HostKind.VM, leave.IMAGES)}
)
status=$?
rm -rf {layout.run} /etc/logrotate.d/{layout.run.name}
for user in {users}; do
  pkill -KILL -u $user; userdel $user; groupdel $user
done 2>/dev/null
exit $status
"""
