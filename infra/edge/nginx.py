"""nginx, the program: find it, give it a configuration that it accepts, describe it as a unit.

What the configuration says is `infra.edge.config`'s; keeping the process is the host's. A configuration is put
in place only after nginx itself has read it without complaint, so the one in force is always good, and
a running edge takes a new one over by a reload: connections that wait for an image stay.
"""

from __future__ import annotations

import asyncio
import grp
import hashlib
import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePath

from infra.edge.config import ArtifactsFolder, EdgeError, EdgeSettings, EdgeUser, edge_config
from infra.hosts import Listen, Unit

FOLDERS = ("/usr/sbin", "/usr/local/sbin")
"""Where packages put it; an ordinary user's PATH often leaves these out."""

USERS = ("www-data", "nobody")
"""Whom nginx's workers become under root: the first that exists."""

CHECK_TIMEOUT_S = 30.0
STOP_GRACE_S = 10.0


def find_nginx() -> Path | None:
    """The nginx on PATH, or where packages put it."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *FOLDERS))
    found = shutil.which("nginx", path=path)
    return Path(found) if found else None


def find_certbot() -> Path | None:
    """The certbot on PATH, or where packages put it."""
    found = shutil.which("certbot", path=os.pathsep.join((os.environ.get("PATH", os.defpath), *FOLDERS)))
    return Path(found) if found else None


def open_to_edge(folder: Path, user: EdgeUser | None) -> None:
    """Let nginx's workers read what is in there, and nobody else who is not its owner."""
    if user:
        os.chown(folder, -1, user.gid)
        folder.chmod(0o2750)


def prune_certificates(settings: EdgeSettings) -> None:
    """Remove those that the edge has shown before; it has taken over what it shows now."""
    if settings.tls is None:
        return
    for file in settings.tls.certificate.parent.glob("*-*.*"):
        if settings.tls.id not in file.name:
            file.unlink(missing_ok=True)


def edge_user() -> EdgeUser | None:
    """Whom to run nginx's workers as, or None where we are not root and they run as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return EdgeUser(name, entry.pw_uid, grp.getgrgid(entry.pw_gid).gr_name, entry.pw_gid)
    raise EdgeError(f"this machine has none of the users {', '.join(USERS)} for nginx to run as; add one of them")


async def configure_edge(settings: EdgeSettings, nginx: Path) -> Unit:
    """Check the configuration with nginx, put it in place, and return the unit that serves it.

    Raises EdgeError, with nginx's own words, if it does not accept the configuration; the file of before
    is then still there, untouched.
    """
    text = edge_config(settings)
    _prepare_folders(settings)
    draft = settings.folder / "nginx.conf.draft"
    draft.write_text(text)
    await _check(nginx, settings, draft)
    draft.replace(_config(settings))
    return edge_unit(settings, nginx)


def edge_unit(settings: EdgeSettings, nginx: PurePath) -> Unit:
    """The edge as a unit. SIGQUIT lets running answers end, within the grace."""
    return Unit(
        name="edge",
        argv=(str(nginx), "-p", str(settings.folder), "-c", str(_config(settings)), "-g", "daemon off;"),
        listens=tuple(_listens(settings)),
        stop_signal="SIGQUIT",
        stop_grace=STOP_GRACE_S,
        config=hashlib.sha256(edge_config(settings).encode()).hexdigest()[:16],
        reload_signal="SIGHUP",
    )


def _listens(settings: EdgeSettings) -> Iterator[Listen]:
    yield Listen(settings.host, settings.port, settings.setting)
    if settings.tls and settings.tls.plain_port is not None:
        yield Listen(settings.host, settings.tls.plain_port, "router.edge.tls.plain_port")


def _config(settings: EdgeSettings) -> Path:
    return settings.folder / "nginx.conf"


async def _check(nginx: Path, settings: EdgeSettings, draft: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(str(nginx), "-t", "-q", "-p", str(settings.folder), "-c", str(draft)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            words, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise EdgeError(f"`{nginx} -t` did not end within {CHECK_TIMEOUT_S:g} s; try it by hand on {draft}") from None
    if process.returncode != 0:
        raise EdgeError(f"nginx does not accept the edge's configuration ({draft}):\n{words.decode().strip()}")


def _prepare_folders(settings: EdgeSettings) -> None:
    """Make them, for ourselves alone, except that nginx's user may pass through the run directory.

    The sockets and temporary files in there are all that its workers touch; configuration and logs are
    opened by its master.
    """
    for folder in (settings.folder, settings.logs, settings.run, settings.run / "edge"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if settings.artifacts:
        settings.artifacts.path.mkdir(mode=0o750, parents=True, exist_ok=True)
    if settings.user:
        for folder in (settings.run, settings.run / "edge"):
            os.chown(folder, -1, settings.user.gid)
            folder.chmod(0o710)
        if settings.artifacts:
            _open_to_group(settings.artifacts, settings.user.gid)
        _require_way(settings.run, settings.user)


def _require_way(folder: Path, user: EdgeUser) -> None:
    """Raise EdgeError if a folder above bars the user: nginx would only answer 503 to everyone."""
    if (barred := _barred(folder, user)) is not None:
        raise EdgeError(
            f"nginx's user {user.name} may not enter {barred}, and the router's socket lies below it; "
            "set LETTERPRESS_RUN to a short path that everyone may enter"
        )


def may_send_from(artifacts: ArtifactsFolder, user: EdgeUser | None) -> bool:
    """Whether the edge's user can get at the images, once the stack's own folders are opened to it: root's checkout
    often lies in a home that bars everyone else."""
    return user is None or _barred(artifacts.stack, user) is None


def _barred(folder: Path, user: EdgeUser) -> Path | None:
    """The folder above that the user may not enter, if there is one."""
    for parent in folder.resolve().parents:
        if not parent.exists():
            continue
        found = parent.stat()
        bit = stat.S_IXUSR if found.st_uid == user.uid else stat.S_IXGRP if found.st_gid == user.gid else stat.S_IXOTH
        if not found.st_mode & bit:
            return parent
    return None


def _open_to_group(folder: ArtifactsFolder, gid: int) -> None:
    """Let the group read the images, now and to come, and pass through the stack's folders above; it lists none."""
    artifacts = folder.path
    if folder.stack not in artifacts.parents:
        raise EdgeError(f"the images' folder {artifacts} is not in the stack's {folder.stack}")
    for above in artifacts.parents:
        os.chown(above, -1, gid)
        above.chmod(0o710)
        if above == folder.stack:
            break
    if artifacts.stat().st_gid == gid:
        return
    # Set-group-ID: what is made in there belongs to the group, too. Last, so that a killed run does it again.
    for path in artifacts.rglob("*"):
        with suppress(FileNotFoundError):  # a router may be at work in there
            os.chown(path, -1, gid)
            path.chmod(0o2750 if path.is_dir() else 0o640)
    artifacts.chmod(0o2750)
    os.chown(artifacts, -1, gid)
