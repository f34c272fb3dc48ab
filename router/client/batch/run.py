"""Runs a batch: looks at what there is, makes what is missing, notes what came of it."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from router.client.batch import folder
from router.client.batch.aside import Aside
from router.client.batch.errors import BadLineError, BatchError, NotMadeError, NotNowError
from router.client.batch.index import Entry, Head, Index, Known, State
from router.client.batch.lines import Asked, Defaults, Line, parse, read_lines
from router.client.batch.makers import Made, Maker, Work
from router.client.batch.settings import Outcome, Settings, Watcher
from router.client.batch.tally import Tally
from router.contract.names import INTERACTIVE, UNMAKEABLE
from worker.contract import MEDIA_TYPES

CHANGED_SHOWN = 3
SUFFIXES: dict[str, str] = {media_type: form.value for form, media_type in MEDIA_TYPES.items()}


async def run(
    settings: Settings, make: Callable[[], Maker], watcher: Watcher, clock: Callable[[], float] = time.monotonic
) -> Outcome:
    """All lines that have no image yet, `settings.concurrency` at a time. Raises BatchError, OSError."""
    if not settings.source.exists():
        raise BatchError(f"there is no file {settings.source}")
    if not settings.source.is_file():
        raise BatchError(f"{settings.source} is no file: a batch is read more than once, so it cannot come by a pipe")
    with folder.held(settings.out):
        index = Index.open(settings.out, _new(settings))
        try:
            folder.settle(settings.out)
            return await _Run(settings, _agreed(settings, index.head), index, watcher, clock).all(make)
        finally:
            index.close()


def _new(settings: Settings) -> Head:
    return Head(
        batch=secrets.token_hex(8),
        input=settings.source.name,
        defaults=settings.defaults,
        begun_at=datetime.now(UTC),
        software=f"letterpress {version('letterpress')}",
    )


def _agreed(settings: Settings, head: Head) -> Defaults:
    """The defaults that the batch was begun with; BatchError if this run says something else. A pool may be named
    later: whoever begins a batch at a worker has none."""
    for name, now in settings.defaults.model_dump(exclude_none=True).items():
        before = getattr(head.defaults, name)
        if now != before and (name != "pool" or before is not None):
            was = "without it" if before is None else f"with {before}"
            raise BatchError(
                f"{name}: {now} now, and {settings.out} was begun {was}; leave it out to go on, or give another folder"
            )
    pool = head.defaults.pool or settings.defaults.pool or settings.pool
    return head.defaults.model_copy(update={"pool": pool})


@dataclass
class _Found:
    """What a look at the input and the index has found."""

    total: int = 0
    todo: dict[int, bytes] = field(default_factory=dict)
    """Lines that want an image, and their digests."""
    claimed: dict[int, Known] = field(default_factory=dict)
    """Lines that have an image, if the files are what the index says."""
    dropped: dict[int, Known] = field(default_factory=dict)
    """Lines whose job was begun when they said something else, or were there at all."""
    failed: int = 0
    invalid: list[tuple[Line, str]] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)


class _Run:
    """One run. The index has one entry added at a time; files are written by several threads."""

    def __init__(
        self, settings: Settings, defaults: Defaults, index: Index, watcher: Watcher, clock: Callable[[], float]
    ) -> None:
        self._settings, self._defaults, self._index = settings, defaults, index
        self._watcher, self._clock = watcher, clock
        self._adding = asyncio.Lock()
        self._tally = Tally(price=settings.price)
        self._edited: int | None = None
        self._aside = Aside(settings.unmakeable_s, settings.patience_s)
        self._asked = 0
        """Lines that are asked for just now, or made."""

    async def all(self, make: Callable[[], Maker]) -> Outcome:
        found = await asyncio.to_thread(self._look)
        if found.changed:
            raise BatchError(self._what_changed(found.changed))
        for line, why in found.invalid:
            self._watcher.bad(line.number, why)
        await self._check(found)
        self._tally.total, self._tally.failed = found.total, found.failed
        self._tally.invalid = len(found.invalid)
        self._tally.begin(self._clock())
        wanted = {number: found.todo[number] for number in sorted(found.todo)[: self._settings.limit]}
        self._tally.left_for_later = len(found.todo) - len(wanted)
        self._watcher.begins(self._tally)
        maker = make() if wanted or found.dropped else None
        if maker is not None:
            await self._drop(maker, found.dropped)
        for line, why in found.invalid:  # not before: the entry of what was begun of such a line names its job
            await self._invalid(line, why)
        if maker is not None:
            await self._make_all(maker, wanted)
        return Outcome(self._tally)

    def _look(self) -> _Found:
        found, names = _Found(), self._names_kept()
        begun = {number: known for number, known in self._index.known.items() if known.state is State.BEGUN}
        for line in read_lines(self._settings.source):
            found.total += 1
            known = self._index.known.get(line.number)
            same = known is not None and known.is_of(line.digest)
            if same:
                begun.pop(line.number, None)
            if known is not None and known.state is State.SUCCEEDED:
                if same:
                    found.claimed[line.number] = known
                    continue
                if not self._settings.redo_changed:
                    found.changed.append(line.number)
                    continue
            try:
                self._claim(line, names)
            except BadLineError as error:
                found.invalid.append((line, str(error)))
                continue
            if same and known is not None and known.state is State.FAILED and not self._settings.retry_failed:
                found.failed += 1
            else:
                found.todo[line.number] = bytes.fromhex(line.digest)
        found.dropped = begun
        return found

    def _names_kept(self) -> set[str]:
        """What the files of lines are called that have an image: whatever else changes, nobody may overwrite those."""
        kept = set[str]()
        for line in read_lines(self._settings.source):
            known = self._index.known.get(line.number)
            if known is None or known.state is not State.SUCCEEDED or known.file is None:
                continue
            if known.is_of(line.digest):
                kept.add(Path(known.file).stem.casefold())
        return kept

    def _claim(self, line: Line, names: set[str]) -> None:
        """Raises BadLineError for a line that cannot be asked for, or whose files' name is taken."""
        name = folder.stem(line.number, self._parsed(line).id).casefold()
        if name in names:
            raise BadLineError(f"id: another line's files are called {name!r} already")
        names.add(name)

    def _parsed(self, line: Line) -> Asked:
        return parse(line, self._defaults, self._index.head.batch)

    def _what_changed(self, changed: list[int]) -> str:
        some = ", ".join(map(str, changed[:CHANGED_SHOWN])) + (", …" if len(changed) > CHANGED_SHOWN else "")
        return (
            f"{self._settings.source}: lines {some} are not those that images were made of ({len(changed)} in all). "
            "Put them back, give another folder, or say --redo-changed to make these anew"
        )

    async def _check(self, found: _Found) -> None:
        """Files that are gone or damaged are wanted again."""
        for number, (line, known) in enumerate(found.claimed.items(), 1):
            path = self._settings.out / (known.file or "")
            digest = None if self._settings.quick else known.sha256
            if await asyncio.to_thread(folder.sound, path, known.bytes, digest):
                self._tally.done_before += 1
                self._tally.gpu_s += known.gpu_s
            else:
                found.todo[line] = known.digest
            self._watcher.checking(number, len(found.claimed))

    async def _drop(self, maker: Maker, dropped: Mapping[int, Known]) -> None:
        """Cancel what was begun of lines that are not what they were: nobody would fetch it."""
        for number, known in dropped.items():
            if known.job is not None and await maker.drop(known.job):
                entry = {"line": number, "digest": known.digest.hex(), "job": known.job, "try": known.number_of_try}
                await self._note({**entry, "state": State.DROPPED})

    def _lines(self, wanted: Mapping[int, bytes]) -> Iterator[Line]:
        """The wanted lines, up to the first that is not what it was when it was looked at. Of a file that is written
        anew under one's hands, what follows may be any part of any line."""
        left = set(wanted)
        for line in read_lines(self._settings.source):
            if line.number not in wanted:
                continue
            if bytes.fromhex(line.digest) != wanted[line.number]:
                break
            left.remove(line.number)
            yield line
        self._edited = min(left, default=None)

    async def _make_all(self, maker: Maker, wanted: Mapping[int, bytes]) -> None:
        lines, through = self._lines(wanted), asyncio.Barrier(self._settings.concurrency)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._settings.concurrency):
                    group.create_task(self._work_off(maker, lines, through))
        except BaseExceptionGroup as several:  # the first is the cause, the others came of it
            raise several.exceptions[0] from None
        if self._edited is not None:
            raise BatchError(
                f"{self._settings.source}: line {self._edited} was edited while the batch ran; what is done is kept. "
                "Run the same again when it is as it should be"
            )

    async def _work_off(self, maker: Maker, lines: Iterator[Line], through: asyncio.Barrier) -> None:
        for line in lines:
            pause_s = 0.0
            try:
                if await self._one(maker, line):
                    self._aside.other_made(self._clock())
            except NotNowError as error:
                self._aside.put(line, self._clock())
                self._watcher.aside(line.number, str(error))
                pause_s = self._aside.pause_s(error.retry_after_s)
            self._watcher.moved()
            await asyncio.sleep(pause_s)
        await through.wait()
        while (put := self._aside.take()) is not None:
            await asyncio.sleep(max(0.0, put.due - self._clock()))
            asked_at = self._clock()
            try:
                if await self._one(maker, put.line):
                    self._aside.late_made(self._clock())
            except NotNowError as error:
                if self._aside.given_up(put, asked_at, error, self._asked):
                    await self._lost(put.line, NotMadeError(UNMAKEABLE, str(error)))
                else:
                    self._aside.back(put, self._clock(), error.retry_after_s)
                    await asyncio.sleep(self._aside.pause_s(error.retry_after_s))
            self._watcher.moved()

    async def _one(self, maker: Maker, line: Line) -> bool:
        """Whether it has its image now. Raises NotNowError."""
        self._asked += 1
        try:
            return await self._made(maker, line)
        finally:
            self._asked -= 1

    async def _lost(self, line: Line, error: NotMadeError) -> None:
        self._tally.failed += 1
        self._watcher.bad(line.number, str(error))
        (_, number_of_try), own_id = self._before(line), self._parsed(line).id
        entry = {"line": line.number, "digest": line.digest, "id": own_id, "try": number_of_try}
        await self._note({**entry, "state": State.FAILED, "job": error.job, "error": str(error)})

    async def _made(self, maker: Maker, line: Line) -> bool:
        asked, (job, number_of_try) = self._parsed(line), self._before(line)
        name = f"{self._index.head.batch}-{line.number}-{line.digest[:8]}-{number_of_try}"

        async def note(state: State, *, sync: bool = True, **fields: object) -> None:
            entry = {"line": line.number, "digest": line.digest, "id": asked.id, "try": number_of_try, **fields}
            await self._note({**entry, "state": state}, sync=sync)

        async def begun(job: str) -> None:
            # For a day the name alone finds it again; this is for later. A lost line costs nothing before that.
            await note(State.BEGUN, sync=False, job=job)

        elsewhere = asked.request.pool != (self._defaults.pool or INTERACTIVE)
        try:
            made = await maker.make(Work(name, asked.request, job, elsewhere), begun)
        except NotMadeError as error:
            await self._lost(line, error)
            return False
        file = await asyncio.to_thread(self._save, line, asked, made)
        await note(
            State.SUCCEEDED,
            job=made.job,
            file=file,
            sha256=made.sha256,
            bytes=len(made.data),
            seed=made.seed,
            is_image_safe=made.is_image_safe,
            gpu_s=round(made.gpu_s, 3),
        )
        self._tally.made(self._clock(), made.gpu_s, safe=made.is_image_safe)
        return True

    def _before(self, line: Line) -> tuple[str | None, int]:
        """The job that the line has already, and the number of the try that is to be made."""
        known = self._index.known.get(line.number)
        if known is None:
            return None, 1
        if not known.is_of(line.digest) or known.state in (State.FAILED, State.DROPPED):
            # Never a name again that has been used: its job may be cancelled.
            return None, known.number_of_try + 1
        return known.job, max(1, known.number_of_try)

    def _save(self, line: Line, asked: Asked, made: Made) -> str:
        out, stem = self._settings.out, folder.stem(line.number, asked.id)
        file = f"{stem}.{SUFFIXES.get(made.media_type, 'png')}"
        about = {
            "file": file,
            "line": line.number,
            "id": asked.id,
            "request": asked.request.model_dump(mode="json", exclude_none=True),
            "seed": made.seed,
            "sha256": made.sha256,
            "bytes": len(made.data),
            "media_type": made.media_type,
            "is_image_safe": made.is_image_safe,
            "safety_reason": made.safety_reason or None,
            "gpu_s": round(made.gpu_s, 3),
            "job": made.job,
        }
        said = {name: value for name, value in about.items() if value is not None}
        folder.save(out, file, made.data)
        folder.save(out, f"{stem}.json", json.dumps(said, ensure_ascii=False, indent=2).encode() + b"\n")
        folder.settle(out)
        return file

    async def _invalid(self, line: Line, why: str) -> None:
        known = self._index.known.get(line.number)
        if known is not None and known.state is State.SUCCEEDED:
            return  # there is an image of what the line was before, and nothing else says which
        if known is None or known.state is not State.INVALID or not known.is_of(line.digest):
            tries = 0 if known is None else known.number_of_try
            entry = {"line": line.number, "digest": line.digest, "try": tries, "error": why}
            await self._note({**entry, "state": State.INVALID})

    async def _note(self, fields: Mapping[str, object], *, sync: bool = True) -> None:
        entry = Entry.model_validate({**fields, "at": datetime.now(UTC)})
        async with self._adding:
            await asyncio.to_thread(self._index.add, entry, sync=sync)
