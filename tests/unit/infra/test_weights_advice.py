"""What is said of weights that could not be fetched onto a machine, out of what the fetch itself said there."""

from __future__ import annotations

import pytest

from infra.bootstrap.weights import advice, reason

BEFORE = "licence  acme-licence, accepted by letterpress on 2026-11-30\ndownloading acme/house: 0.00 of 16.1 GB\n"


@pytest.mark.parametrize(
    ("said", "why", "to_do"),
    [
        ("error: it is gated, and the account that\nHF_TOKEN belongs to", "it is gated, and the", "HF_TOKEN of"),
        ("error: it needs 9.1 GB more: the disk would be full", "it needs 9.1 GB", "On a machine `cache`"),
        ("error: the hub does not answer", "the hub does not answer", "Deploy again"),
        ("Killed", "licence  acme-licence", "Deploy again"),
    ],
)
def test_its_error_alone_and_what_to_do_about_that_one(said: str, why: str, to_do: str) -> None:
    found = reason(BEFORE + said)
    assert found.startswith(why)
    assert found.endswith(said.rpartition(" ")[2])
    assert advice(found).startswith(to_do)
