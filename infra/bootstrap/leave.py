"""Leaving a machine that the user keeps: all that the steps made there and that is this stack's alone, as one script.

It is run over SSH when a stack is destroyed, and can be run by hand, as root, on a machine that did not answer then.
What is shared by stacks (the firewall, the images) goes with the last of them. Packages stay, and so does a cache that
the stack file put elsewhere.
"""

from __future__ import annotations

import shlex

from infra.bootstrap.access import forget_script
from infra.bootstrap.firewall import FOLDER, RULES, TABLE, TRIED, UNIT
from infra.clouds import HostKind
from infra.hosts.remote import stack_folder
from infra.hosts.systemd import FOLDER as UNITS
from infra.hosts.systemd import STARTED

IMAGES = "letterpress-worker"
"""What images that were built or copied are called, whatever their version."""


def leave_script(stack_id: str, user: str, kind: HostKind, image: str) -> str:
    """For `sh`, as root, any number of times. `user` is whom the stack logged in as, `image` what its workers ran.

    It says line by line what it could not take away, and then ends with 1.
    """
    root = stack_folder(stack_id)
    units = _pods_units(stack_id) if kind is HostKind.CONTAINER else _units(stack_id)
    shared = "" if kind is HostKind.CONTAINER else _shared(image)
    return f"""\
# Takes the Letterpress stack {stack_id} off this machine. For root; it may be run again.
umask 077
{units}
{forget_script(user, stack_id)}
rm -rf {root} {STARTED}/{stack_id}-*
left=$(for file in {root} {UNITS}/letterpress-{stack_id}-*; do test -e "$file" && echo "$file is still here"; done)
if rmdir {root.parent} 2>/dev/null || test ! -e {root.parent}; then
  : # this was the last stack
{shared}
fi
test -z "$left" || {{ echo "$left"; exit 1; }}
"""


def _units(stack_id: str) -> str:
    """All at once, for each may take its time to finish an image."""
    return f"""\
units=$(cd {UNITS} && ls | grep '^letterpress-{stack_id}-.*[.]service$')
if test -n "$units"; then
  systemctl disable --now $units
  for unit in $units; do rm -f {UNITS}/$unit {STARTED}/$unit; done
  systemctl daemon-reload
  systemctl reset-failed $units 2>/dev/null
fi
if command -v docker >/dev/null; then
  held=$(docker ps -aq --filter name=^letterpress-{stack_id}-) && test -n "$held" && docker rm -f $held >/dev/null
fi"""


def _pods_units(stack_id: str) -> str:
    root = stack_folder(stack_id)
    return f"""\
for file in {root}/units/*.json; do
  test ! -e "$file" || python3 {root}/keep.py stop {root}/units "$(basename "$file" .json)"
done"""


def _shared(image: str) -> str:
    return f"""\
  systemctl disable --now {UNIT.name} 2>/dev/null
  rm -f {UNIT}
  systemctl daemon-reload
  if command -v nft >/dev/null && nft list table {TABLE} >/dev/null 2>&1; then
    nft delete table {TABLE} || left="$left
the firewall's table is still here: nft delete table {TABLE}"
  fi
  rm -f {RULES} {TRIED}.*
  rmdir {FOLDER} {STARTED} 2>/dev/null
  if command -v docker >/dev/null; then
    for image in {shlex.quote(image)} $(docker image ls -q {IMAGES}); do
      docker image rm -f "$image" >/dev/null 2>&1
    done
  fi"""
