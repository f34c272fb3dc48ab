"""The GPU bench's report: what was not measured is left out, and what is of another process or card is not mixed in."""

from __future__ import annotations

from typing import Any

from tests.gpu.report import AGAIN, COMPILED, RIVAL, SCRIPT, foreign, table


def row(image_s: float, card: str = "A") -> dict[str, Any]:
    return {
        "step": image_s / 25,
        "image": dict.fromkeys(("12", "20", "25", "48"), image_s),
        "images a minute at 25": 60 / image_s,
        "fitted": [],
        "peak GiB": 1.0,
        "card": card,
    }


def line(report: str, name: str) -> list[str]:
    (found,) = (each for each in report.splitlines() if each.startswith(f"| {name} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def found(**more: Any) -> dict[str, Any]:  # noqa: ANN401 - as JSON has it
    return {"card": "A", "versions": {}, "rows": {SCRIPT: row(16.0), RIVAL: row(5.0), "ours": row(4.0)}, **more}


def test_ratios_are_to_the_rows_of_the_same_process() -> None:
    measured = found()
    measured["rows"] |= {AGAIN: row(20.0, "B"), COMPILED: row(10.0, "B")}
    report = table(measured)
    speeds = report.split("PSNR")[0]
    assert line(speeds, "ours")[-2:] == ["1.25", "4.00"]
    assert line(speeds, COMPILED)[-2:] == ["", "2.00"], "the script beside it took 20 s, and there is no rival there"
    assert f"On another card: {AGAIN} on B; {COMPILED} on B." in report


def test_a_served_part_that_was_cut_says_what_it_has_and_no_more() -> None:
    cut = {"tier": "fp8", "requests": 20, "first start": 31.0, "seconds an image, look-ahead on": 3.93, "card": "A"}
    report = table(found(**{"served, fp8": cut}))
    assert "look-ahead on 3.93 s an image." in report
    assert "look-ahead off" not in report
    assert "built" not in report
    whole = cut | {
        "seconds an image, look-ahead off": 4.4,
        "first start, by stage": {"seconds": {}, "kernels_kept": 0, "kernels_built": 14},
        "second start": 12.0,
        "second start, by stage": {"seconds": {}, "kernels_kept": 14, "kernels_built": 0},
    }
    report = table(found(**{"served, fp8": whole}))
    assert "look-ahead on 3.93 s, look-ahead off 4.40 s an image." in report
    assert "The worker's second start: ready after 12 s; 14 kernels lay there, it built 0." in report
    assert "On another card" not in report


def test_a_file_of_another_card_or_of_other_versions_is_not_gone_on_with() -> None:
    mine = {"torch": "2.11.0"}
    assert foreign({}, "A", mine) is None
    assert foreign({"card": "A", "versions": mine}, "A", mine) is None
    assert (
        foreign({"card": "A", "versions": mine}, "B", mine) == "it is of A, torch 2.11.0, and this is B, torch 2.11.0"
    )
    assert foreign({"card": "A", "versions": {"torch": "2.10"}}, "A", mine) is not None


def test_what_compiling_takes_is_told_of_rows_without_images_to_compare_too() -> None:
    measured = found()
    measured["rows"] |= {AGAIN: row(20.0), COMPILED: row(10.0) | {"first image, compilation included": 105.9}}
    exactness = table(measured).split("PSNR")[1]
    assert line(exactness, COMPILED)[-1] == "105.9"
    assert line(exactness, AGAIN)[-1] == "not measured"


def test_a_steps_work_is_told_with_its_formula() -> None:
    timed = row(6.8) | {"step by kernel group, ms": {}, "TFLOP/s": 600.0, "step at 512": 0.1, "step at 2048": 1.0}
    measured = found()
    measured["rows"]["ours"] = timed
    assert f"A step is {600 * 6.8 / 25:.1f} TFLOP by formula" in table(measured)
