"""`letterpress plan`: what a stack would cost, per image, from offers of this moment or from a file of them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from infra.clouds import Offer
from infra.costs.charges import PoolPlan, pool_plans
from infra.costs.choice import Considered, Judge, Workload
from infra.costs.figures import read_figures
from infra.costs.gpus import STEPS
from infra.costs.hosted import PUBLISHED
from infra.paths import StackPaths
from infra.provider.site import Site
from infra.stack import SIZE, CloudName, load
from infra.stack.description import DescriptionError
from infra.view.console import OUT, say

_OFFERS = TypeAdapter(tuple[Offer, ...])
SHOWN_OFFERS = 12
SHOWN_REFUSED = 8


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a plan. `offers` is a file, in the place of the cloud's own."""

    stack: str
    offers: Path | None = None
    images_per_month: int | None = None
    size: str = "1024x1024"
    steps: int = STEPS

    @property
    def workload(self) -> Workload:
        """Raises DescriptionError for a size that is none."""
        if not SIZE.fullmatch(self.size):
            raise DescriptionError(f"--size {self.size}: should be WIDTHxHEIGHT, as in 1024x1024")
        width, height = (int(side) for side in self.size.split("x"))
        return Workload(self.steps, width * height)


def show(question: Question, *, as_json: bool, save: Path | None) -> None:
    """Print the plan; nothing is rented, and nothing but `save` is written."""
    description = load(question.stack)
    if description.cloud == CloudName.LOCAL:
        say(f"Stack {description.name} runs on this computer: its machines cost nothing to rent.")
        return
    paths = StackPaths.of(description.name)
    offers = asyncio.run(_offers(question, description.cloud, paths))
    if save:
        save.write_bytes(_OFFERS.dump_json(tuple(offers), indent=2) + b"\n")
    judge = Judge(read_figures(paths), question.workload)
    plans = pool_plans(description, offers, judge, question.images_per_month)
    if as_json:
        OUT.print(json.dumps(_as_json(description.name, question, plans), indent=2), markup=False)
        return
    for plan in plans:
        _show_pool(plan, question)
    _print(_published())


async def _offers(question: Question, cloud: CloudName, paths: StackPaths) -> Sequence[Offer]:
    if question.offers is None:
        return await Site(paths, os.environ).cloud(cloud).offers()
    try:
        return _OFFERS.validate_json(question.offers.read_bytes())
    except FileNotFoundError:
        raise DescriptionError(f"--offers {question.offers}: there is no such file") from None
    except ValidationError as error:
        raise DescriptionError(
            f"--offers {question.offers}: not a file of offers ({error.errors()[0]['msg']})"
        ) from None


def _show_pool(plan: PoolPlan, question: Question) -> None:
    what = f"{question.size}, {question.steps} steps, tier {plan.tier}"
    OUT.print(f"\n[bold]Pool {plan.pool}[/]: {plan.machines} machine(s), {what}")
    fitting = [one for one in plan.considered if not one.refused]
    table = _table("offer", "market", "region", "$/h", "s/image", "images/h", "$/image", "speed")
    for one in [*fitting, *plan.instead][:SHOWN_OFFERS]:
        _add_offer(table, one)
    if table.row_count:
        _print(table)
    else:
        OUT.print("  No offer fits.")
    market = next((one.offer.market for one in plan.considered if not one.refused), None)
    refused = [one for one in plan.considered if one.refused and market in (None, one.offer.market)]
    for one in refused[:SHOWN_REFUSED]:
        OUT.print(
            f"  [dim]- {escape(one.offer.gpu)} {one.offer.market} {escape(one.offer.region)}: {escape(one.refused)}[/]"
        )
    if len(refused) > SHOWN_REFUSED:
        OUT.print(f"  [dim]- and {len(refused) - SHOWN_REFUSED} more that do not fit (--json shows all)[/]")
    _show_best(plan)


def _show_best(plan: PoolPlan) -> None:
    if not plan.best:
        return
    table = _table("hosted, same size and steps", "$/image there", "$/image here", "pays above", "that is busy")
    for even in plan.break_even:
        table.add_row(
            f"{even.hosted.name} ({even.hosted.steps} steps)",
            f"{even.hosted.dollars:.2f}",
            f"{even.dollars_per_image:.4f}",
            f"{even.breaks_even_at:,.0f} images/h",
            f"{even.busy:.0%}" if even.busy <= 1 else "never",
        )
    _print(table)
    if month := plan.month:
        hosted = ", ".join(f"{name} ${dollars:,.0f}" for name, dollars in month.hosted)
        OUT.print(
            f"  {month.images:,} images a month: {month.machines} machine(s) all month ${month.always_on:,.0f}; rented "
            f"only while they work ${month.at_full_use:,.0f}; hosted: {hosted}"
        )


def _add_offer(table: Table, one: Considered) -> None:
    speed = one.speed
    assert speed  # noqa: S101 - it fits
    table.add_row(
        f"{one.offer.gpus} x {one.offer.gpu}" if one.offer.gpus > 1 else one.offer.gpu,
        one.offer.market,
        one.offer.region,
        f"{one.offer.price:.2f}",
        f"{speed.seconds(one.steps, one.pixels):.2f}",
        f"{one.images_per_hour:,.0f}",
        f"{one.dollars_per_image:.4f}",
        f"{speed.basis}",
    )


def _published() -> Table:
    table = _table("the published guide says", "images/min", "batched", "peak allows", "ours", "why")
    for row in PUBLISHED:
        ours = "-" if row.ours is None else f"{row.ours:.1f} ({row.tier})"
        cells = (
            f"{row.gpu} {row.precision}",
            f"{row.alone:g}",
            f"{row.batched:g}",
            f"{row.bound:.1f}",
            ours,
            row.reason,
        )
        table.add_row(*map(escape, cells))
    return table


def _as_json(stack: str, question: Question, plans: Sequence[PoolPlan]) -> dict[str, object]:
    return {
        "stack": stack,
        "image": {"size": question.size, "steps": question.steps},
        "pools": [
            {
                "pool": plan.pool,
                "tier": plan.tier,
                "machines": plan.machines,
                "offers": [_offer_json(one) for one in (*plan.considered, *plan.instead)],
                "break_even": [
                    {
                        "hosted": even.hosted.name,
                        "hosted_dollars": even.hosted.dollars,
                        "dollars_per_image": round(even.dollars_per_image, 6),
                        "images_per_hour": round(even.breaks_even_at, 2),
                        "busy": round(even.busy, 4),
                    }
                    for even in plan.break_even
                ],
                "month": plan.month
                and {
                    "images": plan.month.images,
                    "machines": plan.month.machines,
                    "always_on": round(plan.month.always_on, 2),
                    "at_full_use": round(plan.month.at_full_use, 2),
                    "hosted": dict(plan.month.hosted),
                },
            }
            for plan in plans
        ],
        "published": [
            {
                "gpu": row.gpu,
                "said": row.alone,
                "batched": row.batched,
                "bound": row.bound,
                "ours": row.ours,
                "why": row.reason,
            }
            for row in PUBLISHED
        ],
    }


def _offer_json(one: Considered) -> dict[str, object]:
    found: dict[str, object] = {
        "id": one.offer.id,
        "gpu": one.offer.gpu,
        "gpus": one.offer.gpus,
        "market": one.offer.market,
        "region": one.offer.region,
        "dollars_per_hour": one.offer.price,
    }
    if one.speed is None:
        return found | {"refused": one.refused}
    return found | {
        "images_per_hour": round(one.images_per_hour, 2),
        "dollars_per_image": round(one.dollars_per_image, 6),
        "speed": one.speed.basis,
        "how": one.speed.how,
    }


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=column != "why")
    return table


def _print(table: Table) -> None:
    """As wide as it is where nobody's terminal ends."""
    console: Console = OUT
    if not OUT.is_terminal:
        width = Measurement.get(OUT, OUT.options.update(max_width=1000), table).maximum
        console = Console(width=width, highlight=False)
    console.print(table)
