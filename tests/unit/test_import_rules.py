"""The import contracts forbid every module but those that are named here, new ones included."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from infra.paths import repository_root

CONTRACTS = {
    contract["source_modules"][0]: contract
    for contract in tomllib.loads((repository_root() / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
}

WORKER_CONTRACT = {"worker.contract", "worker.captions", "worker.sizes"}
"""The contract and what it is written with: pydantic only."""


def modules(package: str) -> set[str]:
    """The modules and packages right under a package."""
    inside = (repository_root() / package).iterdir()
    return {f"{package}.{path.stem}" for path in inside if _is_module(path) or (path / "__init__.py").exists()}


def _is_module(path: Path) -> bool:
    return path.suffix == ".py" and path.stem != "__init__"


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("worker", {"router", "infra"}),
        ("router", {"infra", *modules("worker") - WORKER_CONTRACT}),
        ("infra", modules("router") - {"router.contract", "router.client"} | modules("worker") - WORKER_CONTRACT),
    ],
)
def test_a_package_may_import_the_others_contracts_and_nothing_else_of_theirs(
    package: str, forbidden: set[str]
) -> None:
    assert set(CONTRACTS[package]["forbidden_modules"]) == forbidden


def test_no_contract_makes_an_exception() -> None:
    assert all(not contract.get("ignore_imports") for contract in CONTRACTS.values())
