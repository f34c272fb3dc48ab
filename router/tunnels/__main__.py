"""`python -m router.tunnels`: read the environment, keep the tunnels until told to stop."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from router.errors import RouterError
from router.logs import configure
from router.settings import LogFormat, SettingsError
from router.tunnels.command import Places
from router.tunnels.service import Service

PREFIX = "LETTERPRESS_TUNNELS_"


class TunnelSettings(BaseSettings):
    """`LETTERPRESS_TUNNELS_MACHINES_FILE` and so on; a field without a default must be set."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    machines_file: Path = Field(description="Which machines there are (router.contract.TunnelMachines, JSON).")
    status_file: Path = Field(description="Where to write how they are, for the router to read.")
    run_dir: Path = Field(description="For sockets: short, and this service's alone.")
    key_file: Path = Field(description="The private key that may forward and nothing else; 0600.")
    log_format: LogFormat = LogFormat.JSON


def read_settings() -> TunnelSettings:
    """The settings from the environment. SettingsError lists everything that is wrong with them."""
    try:
        settings = TunnelSettings()
    except ValidationError as error:
        said = [f"{PREFIX}{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors()]
        raise SettingsError("\n".join(said)) from error
    try:
        mode = settings.key_file.stat().st_mode
    except OSError as error:
        raise SettingsError(f"{PREFIX}KEY_FILE: {settings.key_file} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise SettingsError(f"{settings.key_file}: other users may touch this key; run: chmod 600 {settings.key_file}")
    return settings


async def serve(settings: TunnelSettings) -> None:
    """Until SIGTERM or SIGINT."""
    places = Places(settings.run_dir.resolve(), settings.key_file.resolve())
    service = Service(settings.machines_file, settings.status_file, places, random.random)
    running = asyncio.create_task(service.run())
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        if not running.cancelled():
            raise


def main() -> int:
    """The exit status, as the router's: 78 when the settings must change, 69 when something is not there."""
    os.umask(0o077)
    try:
        settings = read_settings()
        configure(settings.log_format)
        asyncio.run(serve(settings))
    except RouterError as error:
        print(f"the tunnel service cannot start:\n{error}", file=sys.stderr)
        return os.EX_CONFIG if isinstance(error, SettingsError) else os.EX_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
