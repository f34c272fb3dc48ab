"""Puts what `tests.gpu.bench` measured into docs/benchmarks.md, between its two markers, and prints it.

python -m tests.gpu.report docs/bench-gpu.json docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- bench-gpu: written by `make bench-gpu` -->", "<!-- /bench-gpu -->"
RIVAL, SCRIPT = "tuned stock pipeline", "published script"
AGAIN, COMPILED = "published script, again", "published script, compiled as it advises"
"""Of a process of their own: the one is what the other is compared with."""
PEAK, COUNTED = "peak GiB at 2048, two of 100 steps", "preflight's sum, GiB"
STEPS = ("12", "20", "25", "48")
Row = Mapping[str, Any]


def foreign(found: Row, card: str, versions: Mapping[str, str]) -> str | None:
    """What differs between what was `found` so far and this card and its versions; None: it may go on there."""
    was, now = (found.get("card", card), found.get("versions", versions)), (card, versions)
    if was == now:
        return None
    return f"it is of {_with(*was)}, and this is {_with(*now)}"


def _with(card: str, versions: Mapping[str, str]) -> str:
    return ", ".join((card, *(f"{name} {number}" for name, number in versions.items())))


def table(found: Row) -> str:
    rows: Mapping[str, Row] = found["rows"]
    return "\n".join(
        [
            _heading(found),
            "",
            *_speeds(rows),
            *_elsewhere(found, rows),
            "",
            *_exactness(rows),
            "",
            *_groups(rows),
            *_firsts(rows),
            "",
            *_others(found),
        ]
    )


def _heading(found: Row) -> str:
    named = _with(found["card"], found["versions"])
    return f"One {named}; 1024x1024 unless said otherwise, 25 steps where steps are not said."


def _speeds(rows: Mapping[str, Row]) -> Iterator[str]:
    heads = ("", "step, s", "image at 12 / 20 / 25 / 48 steps, s", "images a minute", "peak GiB")
    yield f"| {' | '.join((*heads, 'step: tuned stock over this', 'image: script over this'))} |"
    yield "|---|---|---|---|---|---|---|"
    for name, row in rows.items():
        images = " / ".join(f"{row['image'][steps]:.2f}{'*' if int(steps) in row['fitted'] else ''}" for steps in STEPS)
        own = name in {AGAIN, COMPILED}
        rival = None if own else rows.get(RIVAL)
        script = rows.get(AGAIN if own else SCRIPT)
        over = f"{rival['step'] / row['step']:.2f}" if rival else ""
        against = f"{script['image']['25'] / row['image']['25']:.2f}" if script else ""
        yield (
            f"| {name} | {row['step']:.3f} | {images} | {row['images a minute at 25']:.1f} "
            f"| {row['peak GiB']:.1f} | {over} | {against} |"
        )
    yield ""
    yield "\\* from the step and what is around the steps, not measured."


def _exactness(rows: Mapping[str, Row]) -> Iterator[str]:
    heads = ("", "PSNR against the script's images, dB", "error of the velocity, first / middle / last step")
    yield f"| {' | '.join((*heads, 'load and warm-up (stock: the first image, compiling included), s'))} |"
    yield "|---|---|---|---|"
    for name, row in rows.items():
        errors = row.get("error per step") or []
        told = " / ".join(f"{100 * errors[at]:.1f} %" for at in (0, len(errors) // 2, -1)) if errors else ""
        loading = row.get("load and warm-up", row.get("first image, compilation included"))
        spent = "not measured" if loading is None else f"{loading:.1f}"
        yield f"| {name} | {', '.join(f'{one:.1f}' for one in row.get('psnr', ()))} | {told} | {spent} |"


def _groups(rows: Mapping[str, Row]) -> Iterator[str]:
    timed = {name: row["step by kernel group, ms"] for name, row in rows.items() if "step by kernel group, ms" in row}
    if not timed:
        return
    yield f"| ms of a step | {' | '.join(timed)} |"
    yield f"|---|{'---|' * len(timed)}"
    for group in next(iter(timed.values())):
        yield f"| {group} | {' | '.join(f'{one[group]:.1f}' for one in timed.values())} |"
    reached = " | ".join(f"{rows[name]['TFLOP/s']:.0f}" for name in timed)
    yield f"| TFLOP/s over the whole step | {reached} |"
    # The same for all: it is the formula's.
    row = rows[next(iter(timed))]
    work = f"{row['TFLOP/s'] * row['step']:.1f} TFLOP"
    for side in (512, 2048):
        sized = " | ".join(f"{1000 * rows[name][f'step at {side}']:.0f}" for name in timed)
        yield f"| a step at {side}x{side} | {sized} |"
    yield ""
    yield (
        f"A step is {work} by formula: for each of 34 blocks and of the two branches' n rows (image tokens, and in one "
        "branch the prompt's) 2n(4w² + 3wi) for the products and 4n²w for attention; w = 4,608, i = 12,288."
    )


def _firsts(rows: Mapping[str, Row]) -> Iterator[str]:
    """What something new costs, and what the fullest moment takes beside what was counted for it."""
    timed = {name: row for name, row in rows.items() if "a new size" in row}
    if not timed:
        return
    yield ""
    yield f"| {' | '.join(('', *timed))} |"
    yield f"|---|{'---|' * len(timed)}"
    for what, first, again in (
        ("prompt length", "a new prompt length", "again"),
        ("size, 768x768", "a new size", "the same size again"),
    ):
        cells = (f"{1000 * row[first]:.0f}, {1000 * row[again]:.0f}" for row in timed.values())
        yield f"| one step of a new {what}, then again, ms | {' | '.join(cells)} |"
    peaks = (f"{row[PEAK]:.1f}, {row[COUNTED]:.1f}" for row in timed.values())
    yield f"| peak at 2048x2048 with two requests of 100 steps held, the preflight's sum, GiB | {' | '.join(peaks)} |"


def _others(found: Row) -> Iterator[str]:
    if batching := found.get("batching"):
        one, four = batching["four alone, replayed"], batching["a batch of four, replayed"]
        yield (
            f"Batching at 512x512, by the card alone (replayed from a graph): a step of four images one by one "
            f"{one:.3f} s, of a batch of four {four:.3f} s: {100 * batching['gain, replayed']:.0f} % gained. Launched "
            f"from Python: {batching['four alone, s a step']:.3f} s and {batching['a batch of four']:.3f} s."
        )
    for name, row in found.items():
        if name.startswith("served, "):
            yield from _serving(row)


def _serving(row: Row) -> Iterator[str]:
    spent = {key.removeprefix("seconds an image, "): value for key, value in row.items() if "seconds an image" in key}
    told = ", ".join(f"{key} {value:.2f} s" for key, value in spent.items())
    yield f"Served back to back over HTTP, tier {row['tier']}, {row['requests']} requests: {told} an image."
    for start in ("first start", "second start"):
        if said := row.get(f"{start}, by stage"):
            yield (
                f"The worker's {start}: ready after {row[start]:.0f} s; {said['kernels_kept']} kernels lay there, "
                f"it built {said['kernels_built']}."
            )


def _elsewhere(found: Row, rows: Mapping[str, Row]) -> Iterator[str]:
    """What was measured on another card than the table says."""
    named = {**rows} | {name: part for name, part in found.items() if name == "batching" or name.startswith("served, ")}
    others = {name: part["card"] for name, part in named.items() if part.get("card", found["card"]) != found["card"]}
    if others:
        yield ""
        yield f"On another card: {'; '.join(f'{name} on {card}' for name, card in others.items())}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path)
    parser.add_argument("document", type=Path)
    asked = parser.parse_args()
    made = table(json.loads(asked.json.read_text()))
    print(made)
    text = asked.document.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    asked.document.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}")


if __name__ == "__main__":
    main()
