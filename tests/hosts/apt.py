"""A package manager for machines without a network."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.hosts import TestMachine

APT = """\
#!/bin/sh
# Installs certbot and Python, and shows what a package would meet that begins a service.
echo "$@ policy=$(/usr/sbin/policy-rc.d; echo $?)" >>/var/log/apt-stand-in
case "$*" in *certbot*) printf '#!/bin/sh\\n' >/usr/local/bin/certbot; chmod 755 /usr/local/bin/certbot ;; esac
case "$*" in *install*python3-venv*) ln -sf PYTHON /usr/local/bin/python3 ;; esac
""".replace("PYTHON", str(Path(sys.executable).resolve()))


def apt_get(on: TestMachine, program: str = APT) -> None:
    on.inside("sh", "-c", f"cat >/usr/local/bin/apt-get <<'END'\n{program}END\nchmod 755 /usr/local/bin/apt-get")
