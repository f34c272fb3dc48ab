"""Where a stack's state is kept: in its own folder, or in any backend that the Pulumi engine takes.

One setting of the stack file, `state`, or `LETTERPRESS_STATE` in its place. Credentials come from the environment
alone, as the backend's own tools want them (`AWS_ACCESS_KEY_ID`, `PULUMI_ACCESS_TOKEN`, …). Where the state went is
remembered beside the stack, so that looking at it, or ending it, needs no stack file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from infra.errors import InfraError
from infra.files import replace_file
from infra.paths import StackPaths

STATE = "LETTERPRESS_STATE"
SCHEMES = ("file", "s3", "gs", "azblob", "https", "http")
"""A folder; buckets of Amazon's or a compatible service's, Google's, Azure's; Pulumi Cloud, or one's own."""

FOLDER = "file://"


class BackendError(InfraError):
    """A stack's state cannot be kept there; the message says why and what to do."""


def fault(url: str) -> str | None:
    """What is wrong with a backend's URL; None if it will do."""
    parsed = urlsplit(url)
    if parsed.scheme not in SCHEMES:
        return "should be a URL: file:///folder, s3://bucket/folder?region=…, https://api.pulumi.com"
    if parsed.username or parsed.password:
        return "should hold no credentials: they come from the environment (AWS_ACCESS_KEY_ID, PULUMI_ACCESS_TOKEN)"
    if parsed.scheme == "file" and (parsed.netloc or not parsed.path.startswith("/")):
        return "should be file:// and an absolute path, file:///folder"
    if parsed.scheme != "file" and not parsed.netloc:
        return "should name a bucket or a host after ://"
    return None


def own(paths: StackPaths) -> str:
    """The default: a folder of the stack's own."""
    return f"{FOLDER}{paths.pulumi}"


def shared(url: str, paths: StackPaths) -> bool:
    """Whether another checkout can reach it, at least in principle."""
    return url != own(paths)


def wanted(described: str | None, environ: Mapping[str, str], paths: StackPaths) -> str:
    """Where the state is to be: as the environment says, or else the stack file, or else in the stack's folder."""
    override = environ.get(STATE)
    if override and (wrong := fault(override)):
        raise BackendError(f"{STATE}: {wrong}")
    return override or described or own(paths)


def remembered(paths: StackPaths) -> str | None:
    """Where the state went when the stack was last deployed; None if it was not."""
    try:
        return _file(paths).read_text().strip()
    except FileNotFoundError:
        # A stack of an earlier release has its state in its folder, and no such note.
        return own(paths) if any(paths.pulumi.glob("**/stacks/**/*.json")) else None


def require(paths: StackPaths, url: str) -> None:
    """Raise BackendError if the stack's state lies elsewhere already."""
    before = remembered(paths)
    if before is not None and before != url:
        raise BackendError(
            f"stack {paths.root.name}: its state is in {before}, and {url} is described. `letterpress state move "
            f"{paths.root.name}` brings it there; or destroy the stack first, or describe the place where it is"
        )


def remember(paths: StackPaths, url: str) -> None:
    """The state goes there from now on."""
    replace_file(_file(paths), f"{url}\n".encode())


def forget(paths: StackPaths) -> None:
    """The stack is destroyed, and there is no state any more."""
    _file(paths).unlink(missing_ok=True)


def current(paths: StackPaths) -> str:
    """Where to look for the state of a stack whose file need not be there any more."""
    return remembered(paths) or wanted(None, os.environ, paths)


def for_engine(url: str) -> str:
    """The URL as the Pulumi engine is to have it: with nothing beside the state that a killed engine could tear.

    In a folder the state itself is replaced in one step, but a file of attributes beside it, which nothing needs, is
    written in place: an engine killed right then would leave an empty one, and no engine could read the state again.
    """
    folder, _, query = url.partition("?")
    if not folder.startswith(FOLDER):
        return url
    return f"{folder}?{urlencode(dict(parse_qsl(query)) | {'metadata': 'skip'})}"


def drop_torn_attributes(url: str) -> None:
    """Remove what an engine of an earlier release, killed while it wrote, left torn beside a folder's state."""
    if not url.startswith(FOLDER):
        return
    folder, _, _ = url.removeprefix(FOLDER).partition("?")
    for file in Path(unquote(folder), ".pulumi").rglob("*.attrs"):
        try:
            json.loads(file.read_bytes())
        except FileNotFoundError:
            pass
        except ValueError:
            file.unlink(missing_ok=True)


def _file(paths: StackPaths) -> Path:
    return paths.root / "state-backend"
