"""The provider's gRPC calls, made as the Pulumi engine makes them, to a scripted resource."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import grpc
import grpc.aio
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st
from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc, provider_pb2, provider_pb2_grpc, status_pb2

from infra.hosts import Progress
from infra.provider.border import SECRET, SIGNATURE, Border
from infra.provider.enginelog import EngineLog
from infra.provider.resource import Condition, Found, IncompleteError, Inputs, Kind, ProviderError
from infra.provider.server import Provider, serve

URN = f"urn:pulumi:s::letterpress::{Kind.WORKER_HOST}::a-1-workers"


class ThingInputs(Inputs):
    name: str
    port: int
    parts: tuple[str, ...] = ()
    note: str | None = None


class ThingState(ThingInputs, Found):
    pass


Deed = Callable[[ThingInputs, Progress], Awaitable[Condition]]


async def succeed(_inputs: ThingInputs, _progress: Progress) -> Condition:
    return Condition.RUNNING


@dataclass
class Thing:
    """A resource whose deeds a test scripts."""

    deed: Deed = succeed
    there: bool = True
    befores: list[ThingState | None] = field(default_factory=list)
    deleted: list[ThingState] = field(default_factory=list)
    inputs: type[ThingInputs] = ThingInputs
    state: type[ThingState] = ThingState
    replaced_by: frozenset[str] = frozenset({"name"})

    async def ensure(self, inputs: ThingInputs, before: ThingState | None, progress: Progress, /) -> ThingState:
        self.befores.append(before)
        return ThingState(**inputs.model_dump(), condition=await self.deed(inputs, progress))

    async def read(self, state: ThingState, /) -> ThingState | None:
        return state.model_copy(update={"condition": Condition.STOPPED}) if self.there else None

    async def delete(self, state: ThingState, _progress: Progress, /) -> None:
        self.deleted.append(state)


class ListeningEngine(engine_pb2_grpc.EngineServicer):
    """Notes what the provider tells the engine's log."""

    def __init__(self) -> None:
        self.logged: list[engine_pb2.LogRequest] = []

    async def Log(self, request: engine_pb2.LogRequest, _context: object) -> Empty:  # noqa: N802
        self.logged.append(request)
        return Empty()


@dataclass(frozen=True)
class Called:
    provider: provider_pb2_grpc.ResourceProviderAsyncStub
    engine: ListeningEngine


@asynccontextmanager
async def provider(thing: Thing) -> AsyncIterator[Called]:
    engine = ListeningEngine()
    engine_server = grpc.aio.server()
    engine_pb2_grpc.add_EngineServicer_to_server(engine, engine_server)
    engine_port = engine_server.add_insecure_port("127.0.0.1:0")
    await engine_server.start()
    server, port = await serve(Provider({Kind.WORKER_HOST: Border(thing)}, EngineLog(f"127.0.0.1:{engine_port}")))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = provider_pb2_grpc.ResourceProviderStub(channel)
        yield Called(cast("provider_pb2_grpc.ResourceProviderAsyncStub", stub), engine)
    await server.stop(None)
    await engine_server.stop(None)


def struct(**values: object) -> Struct:
    made = Struct()
    made.update(values)
    return made


def good(**values: object) -> Struct:
    return struct(**({"name": "a", "port": 9000} | values))


def recorded(condition: Condition = Condition.RUNNING, **values: object) -> Struct:
    return good(condition=condition.value, **values)


async def diff(olds: Struct, news: Struct) -> provider_pb2.DiffResponse:
    async with provider(Thing()) as called:
        request = provider_pb2.DiffRequest(urn=URN, olds=olds, news=news)
        answer: provider_pb2.DiffResponse = await called.provider.Diff(request)
        return answer


def incomplete(error: grpc.aio.AioRpcError) -> provider_pb2.ErrorResourceInitFailed:
    """What the engine reads of a resource that exists in part."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    detail = provider_pb2.ErrorResourceInitFailed()
    assert status.details[0].Unpack(detail)
    return detail


async def test_it_declines_the_newer_handshake_so_that_the_engine_configures_it_instead() -> None:
    async with provider(Thing()) as called:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await called.provider.Handshake(provider_pb2.ProviderHandshakeRequest())
        configured = await called.provider.Configure(provider_pb2.ConfigureRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert configured.acceptSecrets
    assert configured.supportsPreview


async def test_its_schema_lists_every_resource_with_what_it_requires() -> None:
    async with provider(Thing()) as called:
        answer = await called.provider.GetSchema(provider_pb2.GetSchemaRequest())
    assert '"requiredInputs": ["name", "port"]' in answer.schema


@pytest.mark.parametrize(
    ("news", "path"),
    [
        (struct(name="a"), "port"),
        (good(port="many"), "port"),
        (good(prot=1), "prot"),
        (good(parts=["x", 1]), "parts[1]"),
        (good(note={SIGNATURE: SECRET, "value": "s3cret"}), "note"),
    ],
)
async def test_inputs_that_it_cannot_take_are_refused_with_their_path(news: Struct, path: str) -> None:
    async with provider(Thing()) as called:
        answer = await called.provider.Check(provider_pb2.CheckRequest(urn=URN, news=news))
    assert [failure.property for failure in answer.failures] == [path]


async def test_good_inputs_are_taken_as_they_are() -> None:
    async with provider(Thing()) as called:
        answer = await called.provider.Check(provider_pb2.CheckRequest(urn=URN, news=good()))
    assert not answer.failures
    assert answer.inputs == good()


async def test_nothing_changed_is_no_difference() -> None:
    assert (await diff(recorded(), good())).changes == provider_pb2.DiffResponse.DIFF_NONE


async def test_a_changed_input_is_an_update() -> None:
    answer = await diff(recorded(), good(port=9001))
    assert (list(answer.diffs), list(answer.replaces)) == (["port"], [])


async def test_a_changed_name_is_a_replacement_and_the_old_one_goes_first() -> None:
    answer = await diff(recorded(), good(name="b"))
    assert list(answer.replaces) == ["name"]
    assert answer.deleteBeforeReplace


@pytest.mark.parametrize("condition", [condition for condition in Condition if not condition.good])
async def test_a_bad_condition_is_an_update_even_if_no_input_changed(condition: Condition) -> None:
    answer = await diff(recorded(condition), good())
    assert answer.changes == provider_pb2.DiffResponse.DIFF_SOME
    assert (list(answer.diffs), list(answer.replaces)) == (["condition"], [])


async def test_a_state_with_fields_of_a_later_version_can_still_be_compared() -> None:
    assert (await diff(recorded(later="x"), good())).changes == provider_pb2.DiffResponse.DIFF_NONE


async def test_a_preview_creates_nothing_and_shows_the_inputs() -> None:
    thing = Thing()
    async with provider(thing) as called:
        answer = await called.provider.Create(provider_pb2.CreateRequest(urn=URN, properties=good(), preview=True))
        await called.provider.Update(provider_pb2.UpdateRequest(urn=URN, olds=recorded(), news=good(), preview=True))
    assert not thing.befores
    assert MessageToDict(answer.properties)["port"] == 9000


async def test_a_created_resource_has_its_name_as_its_id() -> None:
    async with provider(Thing()) as called:
        answer = await called.provider.Create(provider_pb2.CreateRequest(urn=URN, properties=good()))
    assert answer.id == "a-1-workers"
    assert MessageToDict(answer.properties)["condition"] == Condition.RUNNING


async def test_an_update_knows_what_was_there_before() -> None:
    thing = Thing()
    async with provider(thing) as called:
        request = provider_pb2.UpdateRequest(urn=URN, olds=recorded(port=8999), news=good())
        await called.provider.Update(request)
    assert [before and before.port for before in thing.befores] == [8999]


async def test_the_stages_of_a_create_reach_the_engine_in_order_and_once_each() -> None:
    async def in_stages(_inputs: ThingInputs, progress: Progress) -> Condition:
        for stage in ("booting", "booting", "loading"):
            progress(stage)
        return Condition.RUNNING

    async with provider(Thing(in_stages)) as called:
        await called.provider.Create(provider_pb2.CreateRequest(urn=URN, properties=good()))
    assert [(log.message, log.urn, log.ephemeral) for log in called.engine.logged] == [
        ("booting", URN, True),
        ("loading", URN, True),
    ]


async def test_a_failure_reaches_the_engine_in_its_own_words() -> None:
    async def fail(_inputs: ThingInputs, _progress: Progress) -> Condition:
        raise ProviderError("a-1: the disk is full; free some of it")

    async with provider(Thing(fail)) as called:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await called.provider.Create(provider_pb2.CreateRequest(urn=URN, properties=good()))
    assert caught.value.details() == "a-1: the disk is full; free some of it"
    assert not caught.value.trailing_metadata()


async def test_what_exists_in_part_is_reported_with_its_state_so_that_it_is_kept() -> None:
    async def half(inputs: ThingInputs, _progress: Progress) -> Condition:
        state = ThingState(**inputs.model_dump(), condition=Condition.STOPPED)
        raise IncompleteError("a-1 ended before it was ready", state)

    async with provider(Thing(half)) as called:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await called.provider.Create(provider_pb2.CreateRequest(urn=URN, properties=good()))
    detail = incomplete(caught.value)
    assert detail.id == "a-1-workers"
    assert list(detail.reasons) == ["a-1 ended before it was ready"]
    assert MessageToDict(detail.properties)["condition"] == Condition.STOPPED


async def test_cancel_reaches_a_running_create_and_what_was_begun_is_kept() -> None:
    begun = asyncio.Event()

    async def forever(_inputs: ThingInputs, _progress: Progress) -> Condition:
        begun.set()
        await asyncio.Event().wait()
        return Condition.RUNNING

    async with provider(Thing(forever)) as called:
        call = called.provider.Create(provider_pb2.CreateRequest(urn=URN, properties=good()))
        await begun.wait()
        await called.provider.Cancel(Empty())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    assert MessageToDict(incomplete(caught.value).properties)["condition"] == Condition.UNKNOWN


async def test_ten_creates_run_side_by_side() -> None:
    together = asyncio.Barrier(10)

    async def meet(_inputs: ThingInputs, _progress: Progress) -> Condition:
        await together.wait()  # would never return if one waited for another
        return Condition.RUNNING

    async with provider(Thing(meet)) as called, asyncio.timeout(20):
        request = provider_pb2.CreateRequest(urn=URN, properties=good())
        await asyncio.gather(*(called.provider.Create(request) for _ in range(10)))


async def test_a_look_returns_the_state_and_the_inputs_apart() -> None:
    async with provider(Thing()) as called:
        answer = await called.provider.Read(provider_pb2.ReadRequest(urn=URN, id="a-1-workers", properties=recorded()))
    assert answer.id == "a-1-workers"
    assert MessageToDict(answer.properties)["condition"] == Condition.STOPPED
    assert "condition" not in MessageToDict(answer.inputs)


async def test_a_look_at_what_is_gone_returns_no_id() -> None:
    async with provider(Thing(there=False)) as called:
        answer = await called.provider.Read(provider_pb2.ReadRequest(urn=URN, id="a-1-workers", properties=recorded()))
    assert not answer.id


async def test_a_delete_is_given_all_that_was_recorded() -> None:
    thing = Thing()
    async with provider(thing) as called:
        await called.provider.Delete(provider_pb2.DeleteRequest(urn=URN, properties=recorded()))
    assert [state.port for state in thing.deleted] == [9000]


@given(
    old=st.builds(ThingInputs, name=st.text(), port=st.integers(0, 99), parts=st.tuples(st.text())),
    new=st.builds(ThingInputs, name=st.text(), port=st.integers(0, 99), note=st.none() | st.text()),
)
def test_what_is_written_down_compares_equal_to_itself_and_differs_only_where_it_differs(
    old: ThingInputs, new: ThingInputs
) -> None:
    border = Border(Thing())
    written = asyncio.run(border.ensure(struct(**old.model_dump(mode="json")), None, lambda _: None))
    assert not border.compare(written, struct(**old.model_dump(mode="json"))).changed
    changed = border.compare(written, struct(**new.model_dump(mode="json"))).changed
    assert set(changed) == {name for name in ThingInputs.model_fields if getattr(old, name) != getattr(new, name)}
