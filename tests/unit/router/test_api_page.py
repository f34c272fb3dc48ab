"""The page for people says what the document says, and asks nobody else for anything."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import cast

import pytest

from router.api.context import Context
from router.api.page import rendered
from router.app import public_app

VOID = {"meta", "br"}


@pytest.fixture(scope="module")
def document() -> dict[str, object]:
    class Nothing:
        version = "1"

    return public_app(cast("Context", Nothing()), lambda _served: None).openapi()


def test_every_route_is_on_the_page(document: dict[str, dict[str, dict[str, object]]]) -> None:
    text = rendered(document)
    for path, operations in document["paths"].items():
        for method in operations:
            assert f'<b class="m">{method.upper()}</b>{path}</code>' in text


def test_the_page_needs_nothing_but_itself(document: dict[str, object]) -> None:
    text = rendered(document)
    assert "<script" not in text
    assert re.findall(r'(?:src|href)="(?!#|/openapi.json)[^"]*"', text) == []


def test_what_the_document_says_cannot_break_the_page(document: dict[str, object]) -> None:
    hostile = {**document, "info": {"title": "<script>1</script>", "description": "a <b> & `<i>`"}}
    text = rendered(hostile)
    assert "<script>" not in text
    assert "&lt;b&gt; &amp; <code>&lt;i&gt;</code>" in text
    HTMLParser().feed(text)
