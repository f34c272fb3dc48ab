"""What state machines of the store stand on: a store on a database of its own, on a clock that the rules move."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from hypothesis.stateful import RuleBasedStateMachine

from router.store import ApiKey
from router.store.sql import SqlStore
from tests.stores import SteeredClock

T = TypeVar("T")


class StoreMachine(RuleBasedStateMachine):
    """Its rules are plain functions; what waits goes through `run`. `open` comes first."""

    store: SqlStore
    key: ApiKey

    def __init__(self, database_url: str) -> None:
        super().__init__()
        self.loop = asyncio.Runner()
        self.database_url = database_url
        self.clock = SteeredClock()

    def run(self, doing: Coroutine[object, object, T]) -> T:
        return self.loop.run(doing)

    def open_store(self) -> None:
        self.store = self.run(SqlStore.open(self.database_url, self.clock))
        self.key = self.run(self.store.put_api_key("default", "0" * 64))

    def teardown(self) -> None:
        self.run(self.store.close())
        self.loop.close()
