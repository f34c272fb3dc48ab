"""The OpenAPI document as a page for people: HTML from our own server, without a script and without anybody's CDN."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse

PATH = "/docs"
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
code,pre{font:14px/1.45 ui-monospace,monospace}pre{background:#f4f4f2;padding:.6rem;overflow:auto}
h2{border-top:2px solid #222;margin-top:3rem;padding-top:.5rem}
h3{margin-top:2.2rem}h3 code{font-size:1rem}b.m{display:inline-block;min-width:4rem}
table{border-collapse:collapse;width:100%;margin:.4rem 0}
td,th{text-align:left;vertical-align:top;padding:.2rem .6rem .2rem 0;border-bottom:1px solid #ddd}
small{color:#666}nav a{margin-right:1rem}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}pre{background:#242424}h2{border-color:#ddd}}
"""
HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'", "Cache-Control": "no-cache"}
METHODS = ("get", "post", "put", "delete")

Node = Mapping[str, Any]
"""A part of the document, which is JSON."""

router = APIRouter(include_in_schema=False)


@router.get(PATH)
async def page(request: Request) -> HTMLResponse:
    """Needs no key, as the document itself does not."""
    app: FastAPI = request.app
    return HTMLResponse(rendered(app.openapi()), headers=HEADERS)


def rendered(document: Node) -> str:
    """The whole page."""
    title = escape(document["info"]["title"])
    return "".join(
        (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>',
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>',
            f"<h1>{title}</h1>{_prose(document['info'].get('description', ''))}",
            '<p>The same for machines: <a href="/openapi.json">/openapi.json</a>.</p>',
            *_parts(document),
            "</html>",
        )
    )


def _parts(document: Node) -> Iterator[str]:
    tags: dict[str, list[tuple[str, str, Node]]] = {}
    for path, operations in document["paths"].items():
        for method in METHODS:
            if method in operations:
                tags.setdefault(operations[method].get("tags", ["other"])[0], []).append(
                    (method, path, operations[method])
                )
    yield "<nav>" + "".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag in tags) + "</nav>"
    for tag, found in tags.items():
        yield f'<h2 id="{escape(tag)}">{escape(tag)}</h2>'
        for method, path, operation in found:
            yield from _operation(document, method, path, operation)
    hooks = document.get("webhooks", {})
    if hooks:
        yield '<h2 id="sent">sent to you</h2>'
        for name, operations in hooks.items():
            for method, operation in operations.items():
                yield from _operation(document, method, name, operation)


def _operation(document: Node, method: str, path: str, operation: Node) -> Iterator[str]:
    yield f'<h3><code><b class="m">{method.upper()}</b>{escape(path)}</code></h3>'
    yield f"<p><b>{escape(operation.get('summary', ''))}.</b></p>{_prose(operation.get('description', ''))}"
    parameters = [
        (found["name"], found.get("required", False), found["schema"], found.get("description", ""))
        for found in operation.get("parameters", ())
    ]
    if parameters:
        yield _table(document, parameters)
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = _resolved(document, content.get("schema", {}))
        yield f"<p>Body: <code>{escape(media_type)}</code></p>{_prose(schema.get('description', ''))}"
        required = schema.get("required", ())
        fields = [
            (name, name in required, field, field.get("description", ""))
            for name, field in schema.get("properties", {}).items()
        ]
        if fields:
            yield _table(document, fields)
        for example in _examples(content, schema):
            yield f"<pre>{escape(json.dumps(example, indent=2, ensure_ascii=False))}</pre>"
    yield "<table>"
    for status, answer in operation.get("responses", {}).items():
        bodies = ", ".join(
            f"<code>{escape(media_type)}</code> {_type(document, content.get('schema', {}))}"
            for media_type, content in answer.get("content", {}).items()
        )
        said = escape(answer.get("description", ""))
        yield f"<tr><td><code>{escape(status)}</code><td>{said}<td>{bodies}"
    yield "</table>"


def _examples(content: Node, schema: Node) -> Iterator[object]:
    yield from (example["value"] for example in content.get("examples", {}).values())
    if "examples" not in content:
        yield from schema.get("examples", ())


def _table(document: Node, fields: list[tuple[str, bool, Node, str]]) -> str:
    rows = []
    for name, required, schema, description in fields:
        default = f" <small>= {escape(json.dumps(schema['default']))}</small>" if "default" in schema else ""
        must = " <small>required</small>" if required else ""
        rows.append(
            f"<tr><td><code>{escape(name)}</code>{must}<td>{_type(document, schema)}{default}"
            f"<td>{escape(description or schema.get('description', ''))}"
        )
    return f"<table>{''.join(rows)}</table>"


def _type(document: Node, schema: Node) -> str:
    """A type in a few words."""
    if "$ref" in schema:
        resolved = _resolved(document, schema)
        return _type(document, resolved) if "enum" in resolved else escape(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        kinds = (_type(document, one) for one in schema["anyOf"] if one.get("type") != "null")
        return " or ".join(dict.fromkeys(kinds)) or "null"
    if "enum" in schema or "const" in schema:
        values = schema.get("enum") or [schema["const"]]
        return " | ".join(f"<code>{escape(str(value))}</code>" for value in values)
    kind = escape(str(schema.get("format") or schema.get("type", "any")))
    if schema.get("type") == "array":
        kind = f"list of {_type(document, schema.get('items', {}))}"
    bounds = [str(schema[bound]) for bound in ("minimum", "maximum") if bound in schema]
    return f"{kind} {' to '.join(bounds)}".strip()


def _resolved(document: Node, schema: Node) -> Node:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: Node = document["components"]["schemas"][reference.rpartition("/")[2]]
    return found


def _prose(text: str) -> str:
    return "".join(f"<p>{_with_code(part)}</p>" for part in text.strip().split("\n\n") if part)


def _with_code(text: str) -> str:
    """`code` between backticks."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))
