"""Many paced workers in one process, for benches: `python -m tests.emulators.paced_fleet COUNT FOLDER TOKEN`.

Each listens on a unix socket `FOLDER/wN`; the process says `ready` when all do. What they cost is little beside
what a router costs: one loop, no log, events only for steps.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from pathlib import Path

import uvicorn
import uvloop

from tests.emulators.paced_worker import PacedWorker


async def _serve(count: int, folder: Path, token: str) -> None:
    servers = []
    for number in range(count):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / f"w{number}"))
        listener.listen(1024)
        (folder / f"w{number}").chmod(0o666)  # nginx and HAProxy come as others
        config = uvicorn.Config(PacedWorker(token).app(), log_level="critical", lifespan="off", access_log=False)
        servers.append(uvicorn.Server(config).serve(sockets=[listener]))
    gc.freeze()
    print("ready", flush=True)
    await asyncio.gather(*servers)


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))


if __name__ == "__main__":
    main()
