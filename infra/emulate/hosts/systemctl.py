# systemctl and systemd-run of a test machine: ask its first process. Each look calls it several times, and importing what
# others would take for that (socket, json) costs more than all that it does.

from __future__ import annotations

import _socket
import sys


def ask(words: list[str]) -> int:
    systemd = _socket.socket(_socket.AF_UNIX)
    systemd.connect("/run/standin-systemd")
    systemd.sendall("\0".join(words).encode())
    systemd.shutdown(_socket.SHUT_WR)
    answer = b""
    while part := systemd.recv(65536):
        answer += part
    status, _, said = answer.decode().partition("\n")
    if said:
        print(said, file=sys.stderr if int(status) else sys.stdout)
    return int(status)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if sys.argv[0].endswith("systemd-run"):  # a command that the service manager runs after a while
        arguments = ["on-active", *(word for word in arguments if not word.startswith("--timer-property"))]
    sys.exit(ask(arguments))
