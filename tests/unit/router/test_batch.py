"""The parts of the batch client that need nobody else: lines, the index, pauses, numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.paths import repository_root
from router.client.batch import BatchError, Defaults, Tally
from router.client.batch import folder as folders
from router.client.batch.errors import BadLineError
from router.client.batch.index import NAME, Entry, Head, Index, State
from router.client.batch.lines import Line, parse, read_lines, seed_of
from router.client.batch.patience import LONGEST_S, MOST_ASKED_S, Patience, pause_s
from router.client.batch.progress import account, span, words
from router.client.errors import RouterUnavailableError
from worker.contract import MAX_BODY_BYTES, MAX_SEED, Preset

BATCH = "0123456789abcdef"
AT = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
"""One moment for all: the real clock spells an entry shorter now and then, and Hypothesis drew from its length."""
CAPTION = {"compositional_deconstruction": {"background": "night", "elements": []}}


def line(text: str | object, number: int = 1) -> Line:
    return Line(number, (text if isinstance(text, str) else json.dumps(text)).encode())


def asked(text: str | object, defaults: Defaults | None = None) -> dict[str, object]:
    found = parse(line(text), defaults or Defaults(), BATCH).request
    return found.model_dump(exclude_defaults=True, exclude={"seed"})


def test_a_plain_line_is_a_prompt_and_an_object_is_a_request() -> None:
    assert asked("a fox, at night") == {"prompt": "a fox, at night"}
    assert asked({"prompt": "a fox", "width": 512, "preset": "V4_TURBO_12"}) == {
        "prompt": "a fox",
        "width": 512,
        "preset": Preset.TURBO_12,
    }
    assert asked(CAPTION) == {"prompt": json.dumps(CAPTION)}


def test_a_line_of_openais_batches_means_the_same_here() -> None:
    body = {"model": "gpt-image-1", "prompt": "a fox", "size": "512x256", "quality": "low", "n": 1, "user": "me"}
    found = {"custom_id": "r-1", "method": "POST", "url": "/v1/images/generations", "body": body}
    assert parse(line(found), Defaults(), BATCH).id == "r-1"
    assert asked(found) == {"prompt": "a fox", "width": 512, "height": 256, "preset": Preset.TURBO_12}
    assert asked({**found, "url": "/generate", "body": {"prompt": "a"}}) == {"prompt": "a", "steps": 25}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"prompt": ', "begins like JSON and is not"),
        ('{"prompt": "a", "widht": 512}', "widht"),
        ('{"prompt": "a", "width": 1000}', "width.*multiple of 16"),
        ('{"prompt": "a", "width": 2048, "height": 256}', "longer than 6:1"),
        ('{"prompt": "a", "steps": 2, "preset": "V4_TURBO_12"}', "steps, preset"),
        ('{"id": 1.5, "prompt": "a"}', "id: is text"),
        ('{"id": "a", "custom_id": "b", "prompt": "a"}', "give one of them"),
        ('{"compositional_deconstruction": 1}', "reads like a JSON caption"),
        ('{"url": "/v1/images/generations", "body": {"prompt": "a", "n": 2}}', "n: 2 cannot be served"),
        ('{"url": "/v1/images/generations", "body": {"prompt": "a", "size": "big"}}', "size: 'big'"),
        ('{"url": "/v1/chat/completions", "body": {"prompt": "a"}}', "url: .* is none of"),
        ('{"prompt": {"a": 1}}', "prompt"),
    ],
)
def test_a_bad_line_says_why(text: str, why: str) -> None:
    with pytest.raises(BadLineError, match=why):
        parse(line(text), Defaults(), BATCH)


def test_bytes_that_are_no_text_and_a_line_without_end_are_refused() -> None:
    with pytest.raises(BadLineError, match=r"not UTF-8 \(byte 3\)"):
        parse(Line(1, b"ab\xff"), Defaults(), BATCH)
    with pytest.raises(BadLineError, match="longer than"):
        parse(Line(1, b"x" * (MAX_BODY_BYTES + 1)), Defaults(), BATCH)


def test_defaults_fill_in_what_a_line_leaves_out_and_never_half_of_something() -> None:
    defaults = Defaults(width=512, height=256, steps=4, pool="batch")
    assert asked("a", defaults) == {"prompt": "a", "width": 512, "height": 256, "steps": 4, "pool": "batch"}
    own = {"prompt": "a", "width": 768, "preset": "V4_TURBO_12"}
    assert asked(own, defaults) == {"prompt": "a", "width": 768, "preset": Preset.TURBO_12, "pool": "batch"}


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    source = tmp_path / "prompts.txt"
    source.write_bytes(b"\xef\xbb\xbfone\r\n\n  \nfour\n" + b"y" * (3 * MAX_BODY_BYTES) + b"\nsix")
    found = list(read_lines(source))
    assert [(each.number, each.text[:4]) for each in found] == [(1, b"one"), (4, b"four"), (5, b"yyyy"), (6, b"six")]


@given(st.integers(1, 10**6), st.binary(max_size=40))
def test_a_seed_follows_from_batch_and_line(number: int, text: bytes) -> None:
    each = Line(number, text)
    assert seed_of(BATCH, each) == seed_of(BATCH, each) <= MAX_SEED
    assert seed_of(BATCH, each) != seed_of("f" * 16, each)


def head() -> Head:
    return Head(batch=BATCH, input="p", defaults=Defaults(), begun_at=AT, software="letterpress 0")


def entry(number: int, state: State = State.FAILED, digest: str = "0" * 64) -> Entry:
    return Entry.model_validate({"line": number, "digest": digest, "state": state, "at": AT})


@given(st.data())
def test_an_index_that_was_cut_anywhere_has_all_that_was_noted_before(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path is one for all examples
        path = Path(name)
        index = Index.open(path, head())
        ends = [(path / NAME).stat().st_size]
        for number in range(1, 5):
            index.add(entry(number))
            ends.append((path / NAME).stat().st_size)
        index.close()
        cut = data.draw(st.integers(0, ends[-1]))
        os.truncate(path / NAME, cut)
        index = Index.open(path, head())
        whole = sum(end <= cut for end in ends) - 1
        assert set(index.known) == set(range(1, whole + 1))
        index.add(entry(9))
        index.close()
        index = Index.open(path, head())
        assert set(index.known) == {*range(1, whole + 1), 9}
        index.close()


def test_of_a_line_the_last_entry_counts(tmp_path: Path) -> None:
    index = Index.open(tmp_path, head())
    index.add(entry(1, State.FAILED))
    index.add(entry(1, State.SUCCEEDED, "1" * 64))
    index.close()
    index = Index.open(tmp_path, head())
    assert index.known[1].state is State.SUCCEEDED
    assert index.known[1].is_of("1" * 64)
    index.close()


def test_an_index_damaged_in_the_middle_is_named_by_its_line_and_not_believed(tmp_path: Path) -> None:
    index = Index.open(tmp_path, head())
    index.add(entry(1))
    index.close()
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'{"line": "so"}\n')
    with pytest.raises(BatchError, match=r"index.jsonl, line 3: is damaged"):
        Index.open(tmp_path, head())
    (tmp_path / NAME).write_bytes(b'{"something": "else"}\n')
    with pytest.raises(BatchError, match="is not the index of a batch"):
        Index.open(tmp_path, head())


def test_a_folder_in_use_says_by_whom(tmp_path: Path) -> None:
    with folders.held(tmp_path), pytest.raises(BatchError, match=f"in use by process {os.getpid()} on "):  # noqa: SIM117
        with folders.held(tmp_path):
            pass
    with folders.held(tmp_path):
        pass


def test_drafts_of_a_killed_run_are_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".000001.png.part").write_bytes(b"half")
    (tmp_path / "mine.part").write_bytes(b"not ours")
    with folders.held(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "mine.part"}


@given(st.integers(1, 10_000), st.none() | st.floats(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_pause_is_never_shorter_than_asked_for_and_never_endless(
    failures: int, asked_s: float | None, drawn: float
) -> None:
    pause = pause_s(failures, asked_s, drawn)
    if asked_s is None:
        assert 0 < pause <= 1.25 * LONGEST_S
    else:
        assert min(asked_s, MOST_ASKED_S) <= pause <= 1.25 * MOST_ASKED_S


class Ailing:
    """Says "not now" so many times, and a clock that stands still but for what each time takes."""

    def __init__(self, failures: int, takes_s: float) -> None:
        self.now, self._left, self._takes_s = 0.0, failures, takes_s

    async def ask(self) -> str:
        if not self._left:
            return "an answer"
        self._left -= 1
        self.now += self._takes_s
        raise RouterUnavailableError("GET /", 503, "not now", 0.0)


async def test_patience_counts_from_the_first_failure_and_not_from_the_last_answer() -> None:
    ailing = Ailing(failures=3, takes_s=1700)
    patience = Patience(3600, lambda _: None, lambda: ailing.now)
    ailing.now += 7200  # all wait for their jobs, and nobody asks anything
    assert await patience.insist(ailing.ask) == "an answer"
    worse = Ailing(failures=4, takes_s=1700)
    patience = Patience(3600, lambda _: None, lambda: worse.now)
    with pytest.raises(BatchError, match="nothing has gone well for 5100 s"):
        await patience.insist(worse.ask)


async def test_a_stream_that_beats_is_an_answer_while_submissions_are_refused() -> None:
    ailing = Ailing(failures=9, takes_s=1700)
    patience = Patience(3600, lambda _: None, lambda: ailing.now)

    async def beside() -> str:
        patience.well()
        return await ailing.ask()

    assert await patience.insist(beside) == "an answer"


def test_numbers_for_people() -> None:
    tally = Tally(total=100, done_before=10, failed=2, invalid=1, price=2.0)
    tally.begin(0.0)
    assert words(tally, 0.0) == "10/100  no image yet  3 without image  cost $0.00"
    for second in range(30):
        tally.made(float(second), 60.0, safe=second != 3)
    assert words(tally, 30.0) == "40/100  60.0 a minute  3 without image  cost $1.00  57 s left"
    said = account(tally, Path("out"))
    assert said[0] == "40 of 100 lines have their image in out; 30 made now, 0.50 GPU hours in all, cost $1.00"
    assert any("1 of those made now look refused" in each for each in said)
    assert [span(59), span(600), span(7200)] == ["59 s", "10 min", "2.0 h"]


def test_a_laptop_needs_no_extra_for_it() -> None:
    extras = "sqlalchemy fastapi starlette uvicorn yaml pulumi grpc torch PIL alembic celery obstore prometheus_client"
    check = f"""
import sys
class Bar:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {set(extras.split())!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Bar())
import infra.cli, infra.cli.asking, router.client.batch.progress, router.client.once, router.client.worker
"""
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=repository_root(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
