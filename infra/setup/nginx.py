"""Gets nginx, the edge, onto this machine by its package manager. An nginx that was here before is left as it is."""

from __future__ import annotations

from pathlib import Path

from infra.edge.nginx import find_nginx
from infra.setup import apt
from infra.setup.engine import Say, SetupError


def ensure_nginx(say: Say) -> Path:
    """The nginx binary, installed now if need be and if that is allowed."""
    if found := find_nginx():
        return found
    apt.install(say, "nginx", "nginx-light", ("nginx",))
    if found := find_nginx():
        return found
    raise SetupError("apt-get installed nginx-light, yet no nginx is to be found; install nginx by hand and try again")
