"""certbot, the program: the edge's certificate got and renewed by a unit of its own. Pure.

Until the first one is signed the edge shows a placeholder. A new one is put in place by a hook, after nginx has read it
without complaint; otherwise the one of before comes back and nothing is reloaded.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import PurePath

from infra.hosts import Unit

NAME = "certbot"
EVERY_S = 43_200
"""Twice a day, as certbot's own timer does."""
AGAIN_S = 3_600
"""After a failure: Let's Encrypt allows five an hour for each account and name."""


@dataclass(frozen=True, slots=True)
class Authority:
    """`folder` is the edge's. `server` is another authority than Let's Encrypt (an ACME directory's URL)."""

    program: PurePath
    domain: str
    email: str
    folder: PurePath
    challenges: PurePath
    server: str = ""

    @property
    def chain(self) -> PurePath:
        return self.folder / "tls" / "chain.pem"

    @property
    def key(self) -> PurePath:
        return self.folder / "tls" / "key.pem"

    @property
    def hook(self) -> PurePath:
        return self.folder / "new-certificate"


def hook(authority: Authority, nginx: PurePath) -> str:
    """What certbot runs when it has a new certificate, whose folder is in RENEWED_LINEAGE."""
    chain, key, folder = (shlex.quote(str(path)) for path in (authority.chain, authority.key, authority.folder))
    check = shlex.join((str(nginx), "-t", "-q", "-p", str(authority.folder), "-c", f"{authority.folder}/nginx.conf"))
    return f"""\
#!/bin/sh
set -eu
umask 077
cp -p {chain} {chain}.before
cp -p {key} {key}.before
cp "$RENEWED_LINEAGE/fullchain.pem" {chain}.new
cp "$RENEWED_LINEAGE/privkey.pem" {key}.new
mv {chain}.new {chain}
mv {key}.new {key}
if ! {check}; then
    mv {chain}.before {chain}
    mv {key}.before {key}
    echo "nginx does not take the new certificate; the one of before stays" >&2
    exit 1
fi
rm -f {chain}.before {key}.before
kill -HUP "$(cat {folder}/nginx.pid)"
echo "a new certificate for {authority.domain} is in use"
"""


def unit(authority: Authority) -> Unit:
    """Asks for the certificate, which is nothing to do while the one that is there is good for a month."""
    own = authority.folder / NAME
    contact = ("-m", authority.email) if authority.email else ("--register-unsafely-without-email",)
    command = shlex.join(
        (
            *(str(authority.program), "certonly", "--non-interactive", "--agree-tos", *contact),
            *("--webroot", "-w", str(authority.challenges), "-d", authority.domain, "--keep-until-expiring"),
            *("--config-dir", str(own / "config"), "--work-dir", str(own / "work"), "--logs-dir", str(own / "logs")),
            *("--deploy-hook", str(authority.hook)),
            *(("--server", authority.server) if authority.server else ()),
        )
    )
    script = f"while :; do if {command}; then sleep {EVERY_S}; else sleep {AGAIN_S}; fi; done"
    return Unit(name=NAME, argv=("/bin/sh", "-c", script))
