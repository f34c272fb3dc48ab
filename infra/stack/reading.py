"""Stack files from the disk: by name or path, relative folders made absolute, everything that is wrong said at once."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from infra.paths import repository_root
from infra.stack.description import DescriptionError, read_yaml, say
from infra.stack.router import Router
from infra.stack.whole import StackDescription


def parse(text: str, source: str, folder: Path) -> StackDescription:
    """Check the text of a stack file. `source` names it in errors; relative folders in it are under `folder`.

    Raises DescriptionError with one line for everything that is wrong.
    """
    document = read_yaml(text, source)
    try:
        description = StackDescription.model_validate(document.data)
    except ValidationError as error:
        raise DescriptionError(say(error, document, StackDescription)) from None
    return description.model_copy(
        update={
            "model": _anchored(description.model, folder),
            "cache": description.cache and _anchored(description.cache, folder),
            "router": _router_anchored(description.router, folder),
            "image": description.image.model_copy(
                update={"archive": description.image.archive and _anchored(description.image.archive, folder)}
            ),
        }
    )


def _router_anchored(router: Router, folder: Path) -> Router:
    tls = router.edge.tls
    if tls is None or tls.certificate is None or tls.key is None:
        return router
    files = {"certificate": _anchored(tls.certificate, folder), "key": _anchored(tls.key, folder)}
    edge = router.edge.model_copy(update={"tls": tls.model_copy(update=files)})
    return router.model_copy(update={"edge": edge})


def load(name_or_path: str, stacks: Path | None = None) -> StackDescription:
    """Read `stacks/<name>.yaml`, or the file at a path (it holds a slash or ends in .yaml)."""
    by_path = "/" in name_or_path or name_or_path.endswith((".yaml", ".yml"))
    folder = stacks or repository_root() / "stacks"
    path = Path(name_or_path).expanduser() if by_path else folder / f"{name_or_path}.yaml"
    try:
        text = path.read_text()
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise DescriptionError(f"there is no stack file {path}; the stacks here are: {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DescriptionError(f"{path} cannot be read: {error}") from None
    description = parse(text, str(path), path.resolve().parent)
    if not by_path and description.name != name_or_path:
        # A copied file that kept its name would change the other stack's machines.
        raise DescriptionError(f"{path} says `name: {description.name}`; it should say `name: {name_or_path}`")
    return description


def with_model(description: StackDescription, model: str, folder: Path) -> StackDescription:
    """The same stack with other weights, as `MODEL=` asks; a relative folder is one under `folder`."""
    try:
        changed = StackDescription.model_validate(description.model_dump() | {"model": model})
    except ValidationError as error:
        raise DescriptionError(f"MODEL={model}: {error.errors()[0]['msg']}") from None
    return changed.model_copy(update={"model": _anchored(changed.model, folder)})


def json_schema() -> str:
    """The JSON Schema of stack files, as published in docs/stack.schema.json."""
    schema = StackDescription.model_json_schema()
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def _anchored(text: str, folder: Path) -> str:
    """A relative folder as an absolute one; repositories, references and the rest as they are."""
    if text.startswith("~"):
        return str(Path(text).expanduser())
    return str((folder / text).resolve()) if text.startswith(("./", "../")) else text
