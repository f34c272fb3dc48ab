"""OpenAI's lists, page by page: the one after `after`, and whether there is more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Generic, Literal, Self, TypeVar

from fastapi import Query

from worker.contract import Frozen


class Listed(Frozen):
    id: str


T = TypeVar("T", bound=Listed)

After = Annotated[str | None, Query(max_length=64, description="The last id of the page before.")]


class Page(Frozen, Generic[T]):
    """Some of a list."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, found: Sequence[T], limit: int) -> Self:
        """Of one more than `limit`, if there are so many: that says whether there is more."""
        data = list(found[:limit])
        ends = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data=data, first_id=ends[0], last_id=ends[1], has_more=len(found) > limit)
