"""`certbot certonly --webroot`, as far as the edge can tell: proves the name over HTTP, signs, and runs the hook.

    certbot.py FOLDER certonly …

The folder says on which port the challenge is asked for (a real authority: 80) and holds what was signed beforehand.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import urllib.request
from pathlib import Path


def main(folder: Path, arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["certonly"])
    for flag in ("--non-interactive", "--agree-tos", "--webroot", "--keep-until-expiring"):
        parser.add_argument(flag, action="store_true", required=True)
    for name in ("-m", "-w", "-d", "--config-dir", "--work-dir", "--logs-dir", "--deploy-hook"):
        parser.add_argument(name, required=True)
    told = parser.parse_args(arguments)
    lineage = Path(told.config_dir) / "live" / told.d
    if (lineage / "fullchain.pem").exists():
        print("Certificate not yet due for renewal")
        return 0
    token = Path(told.w) / ".well-known/acme-challenge/token"
    token.parent.mkdir(parents=True, exist_ok=True)
    token.parent.chmod(0o755)
    token.parent.parent.chmod(0o755)
    token.write_text("token.thumbprint")
    token.chmod(0o644)
    port = (folder / "port").read_text()
    url = f"http://127.0.0.1:{port}/.well-known/acme-challenge/token"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
        proved = answer.read().decode()
    token.unlink()
    if proved != "token.thumbprint":
        print(f"Challenge failed for domain {told.d}", file=sys.stderr)
        return 1
    lineage.mkdir(parents=True)
    for name in ("fullchain.pem", "privkey.pem"):
        (lineage / name).write_bytes((folder / name).read_bytes())
    environment = {**os.environ, "RENEWED_LINEAGE": str(lineage), "RENEWED_DOMAINS": told.d}
    return subprocess.run(told.deploy_hook, shell=True, env=environment, check=False).returncode  # noqa: S602 - as certbot


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
