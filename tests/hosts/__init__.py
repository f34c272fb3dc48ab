"""Machines without hardware (`infra.emulate.hosts`) for tests: where there can be none, the test is skipped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from infra.bootstrap.router.packages import PYTHONS
from infra.emulate.hosts import machine as machines
from infra.emulate.hosts import namespace as namespaces
from infra.emulate.hosts.machine import TestMachine
from infra.emulate.hosts.namespace import NoMachinesError

__all__ = ["FIRST_PORT", "TestMachine", "machine", "namespace", "without_python"]

FIRST_PORT = 9100
"""Of workers there, where nobody else is. None of those that the kernel gives to whoever connects: a question to such a
port before somebody listens on it may be given that port itself, and then nobody can listen on it for a minute."""

P = ParamSpec("P")
T = TypeVar("T")


def _or_skipped(make: Callable[P, AbstractContextManager[T]]) -> Callable[P, AbstractContextManager[T]]:
    @contextmanager
    def made(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        with ExitStack() as stack:
            try:
                running = stack.enter_context(make(*args, **kwargs))
            except NoMachinesError as error:
                pytest.skip(str(error))
            yield running

    return made


machine = _or_skipped(machines.machine)
namespace = _or_skipped(namespaces.namespace)


@contextmanager
def without_python(on: TestMachine) -> Iterator[None]:
    """As if nobody had installed one there: every name that it may go by leads to nothing."""
    here = "cd /usr/local/bin"
    nothing = f"{here}; for p in {PYTHONS}; do rm -f $p; printf '#!/bin/sh\\nexit 127\\n' >$p; chmod 755 $p; done"
    on.inside("sh", "-c", nothing)
    try:
        yield
    finally:
        on.inside("sh", "-c", f"{here}; rm -f {PYTHONS}; ln -s {Path(sys.executable).resolve()} python3")
