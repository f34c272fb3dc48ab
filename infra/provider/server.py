"""The gRPC server that the Pulumi engine starts as `pulumi-resource-letterpress` and speaks to.

It translates calls and their failures, and nothing else: values are `infra.provider.border`'s, deeds are
the resources'. All calls run side by side in one event loop. The process ends with its engine.
"""

# ruff: noqa: ARG002, N802 - methods and their parameters are named by the protocol

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Coroutine, Mapping
from importlib.metadata import version
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import Struct
from grpc.aio import ServicerContext as Context
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc, status_pb2

from infra.errors import InfraError
from infra.hosts.processes import ended
from infra.provider.border import Border, struct_of
from infra.provider.endpoint import EndpointResource
from infra.provider.enginelog import EngineLog
from infra.provider.machine import MachineResource
from infra.provider.registration import RegistrationResource
from infra.provider.resource import IncompleteError, Kind, name_of
from infra.provider.router_host import RouterHostResource
from infra.provider.site import Site
from infra.provider.worker_host import WorkerHostResource

T = TypeVar("T")


Borders = Mapping[Kind, Border[Any, Any]]

STOP_S = 5.0
"""How long running calls may take to end once the engine is gone."""


def borders(site: Site) -> Borders:
    """Every resource of the provider."""
    return {
        Kind.MACHINE: Border(
            MachineResource(site.cloud, site.public_key, site.waits, site.forget_host_key, site.environ)
        ),
        Kind.WORKER_HOST: Border(WorkerHostResource(site)),
        Kind.ROUTER_HOST: Border(RouterHostResource(site)),
        Kind.REGISTRATION: Border(RegistrationResource(site)),
        Kind.ENDPOINT: Border(EndpointResource(site.serverless, site.environ)),
    }


class Provider(provider_pb2_grpc.ResourceProviderServicer):
    """Answers the engine. `log` shows a resource's stage while a call for it runs."""

    def __init__(self, borders: Borders, log: EngineLog) -> None:
        self._borders = borders
        self._log = log
        self._running: set[asyncio.Task[Any]] = set()

    async def Handshake(self, request: provider_pb2.ProviderHandshakeRequest, context: Context) -> NoReturn:
        """Newer than what we need; the engine falls back to Configure."""
        await _abort(context, grpc.StatusCode.UNIMPLEMENTED, "no handshake")

    async def GetPluginInfo(self, request: Empty, context: Context) -> plugin_pb2.PluginInfo:
        return plugin_pb2.PluginInfo(version=version("letterpress"))

    async def GetSchema(
        self, request: provider_pb2.GetSchemaRequest, context: Context
    ) -> provider_pb2.GetSchemaResponse:
        resources = {
            kind.value: {
                "inputProperties": {name: {"$ref": "pulumi.json#/Any"} for name in border.resource.inputs.model_fields},
                "requiredInputs": [
                    name for name, field in border.resource.inputs.model_fields.items() if field.is_required()
                ],
            }
            for kind, border in self._borders.items()
        }
        schema = {"name": "letterpress", "version": version("letterpress"), "resources": resources}
        return provider_pb2.GetSchemaResponse(schema=json.dumps(schema))

    async def CheckConfig(self, request: provider_pb2.CheckRequest, context: Context) -> provider_pb2.CheckResponse:
        return provider_pb2.CheckResponse(inputs=request.news)

    async def DiffConfig(self, request: provider_pb2.DiffRequest, context: Context) -> provider_pb2.DiffResponse:
        return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)

    async def Configure(
        self, request: provider_pb2.ConfigureRequest, context: Context
    ) -> provider_pb2.ConfigureResponse:
        return provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

    async def Check(self, request: provider_pb2.CheckRequest, context: Context) -> provider_pb2.CheckResponse:
        failures = [
            provider_pb2.CheckFailure(property=refusal.path, reason=refusal.reason)
            for refusal in self._of(request.urn).check(request.news)
        ]
        return provider_pb2.CheckResponse(inputs=request.news, failures=failures)

    async def Diff(self, request: provider_pb2.DiffRequest, context: Context) -> provider_pb2.DiffResponse:
        difference = self._of(request.urn).compare(request.olds, request.news)
        some = provider_pb2.DiffResponse.DIFF_SOME if difference.changed else provider_pb2.DiffResponse.DIFF_NONE
        return provider_pb2.DiffResponse(
            changes=some,
            diffs=difference.changed,
            replaces=difference.replaces,
            # The successor wants what its predecessor holds: a port, a GPU of this computer.
            deleteBeforeReplace=bool(difference.replaces),
        )

    async def Create(self, request: provider_pb2.CreateRequest, context: Context) -> provider_pb2.CreateResponse:
        border, news = self._of(request.urn), request.properties
        if request.preview:
            return provider_pb2.CreateResponse(properties=border.foreseen(news))
        properties = await self._ensure(border, request.urn, news, None, context)
        return provider_pb2.CreateResponse(id=name_of(request.urn), properties=properties)

    async def Read(self, request: provider_pb2.ReadRequest, context: Context) -> provider_pb2.ReadResponse:
        # A resource whose creation was cut short has no outputs yet: then its inputs are all there is.
        properties = request.properties if request.properties.fields else request.inputs
        found = await self._run(self._of(request.urn).read(properties), context)
        if found is None:
            return provider_pb2.ReadResponse()
        return provider_pb2.ReadResponse(id=request.id, properties=found[0], inputs=found[1])

    async def Update(self, request: provider_pb2.UpdateRequest, context: Context) -> provider_pb2.UpdateResponse:
        border = self._of(request.urn)
        if request.preview:
            return provider_pb2.UpdateResponse(properties=border.foreseen(request.news))
        properties = await self._ensure(border, request.urn, request.news, request.olds, context)
        return provider_pb2.UpdateResponse(properties=properties)

    async def Delete(self, request: provider_pb2.DeleteRequest, context: Context) -> Empty:
        async with self._log.stages(request.urn) as progress:
            await self._run(self._of(request.urn).delete(request.properties, progress), context)
        return Empty()

    async def Cancel(self, request: Empty, context: Context) -> Empty:
        """The engine was told to stop: so is everything that runs."""
        for task in self._running:
            task.cancel()
        return Empty()

    def _of(self, urn: str) -> Border[Any, Any]:
        kind = Kind.of(urn)
        if kind is None:
            raise LookupError(f"{urn} is not a resource of this provider")
        return self._borders[kind]

    async def _ensure(
        self, border: Border[Any, Any], urn: str, news: Struct, olds: Struct | None, context: Context
    ) -> Struct:
        """Create or update. What exists in part is reported as such, so that the engine keeps it in its state."""
        identity = name_of(urn)
        try:
            async with self._log.stages(urn) as progress:
                return await self._cancellable(border.ensure(news, olds, progress))
        except IncompleteError as error:
            await _abort_incomplete(context, identity, struct_of(error.state), str(error))
        except _CancelledByEngineError:
            # Half of it may be there, and the next look will tell.
            await _abort_incomplete(context, identity, border.foreseen(news), "cancelled; what was begun is kept")
        except InfraError as error:
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))

    async def _run(self, deed: Coroutine[Any, Any, T], context: Context) -> T:
        try:
            return await self._cancellable(deed)
        except _CancelledByEngineError:
            await _abort(context, grpc.StatusCode.CANCELLED, "cancelled")
        except InfraError as error:
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))

    async def _cancellable(self, deed: Coroutine[Any, Any, T]) -> T:
        """Run it as a task of its own, which Cancel can reach; the call then still has to be answered."""
        task = asyncio.create_task(deed)
        self._running.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            call = asyncio.current_task()
            if call is not None and call.cancelling():
                raise  # the call itself is over: the engine has gone
            raise _CancelledByEngineError from None
        finally:
            self._running.discard(task)


class _CancelledByEngineError(Exception):
    pass


async def _abort(context: Context, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError("abort() always raises")


async def _abort_incomplete(context: Context, identity: str, state: Struct, reason: str) -> NoReturn:
    """Fail a call whose resource exists nevertheless: the engine keeps it and updates it the next time."""
    detail = provider_pb2.ErrorResourceInitFailed(id=identity, properties=state, reasons=[reason])
    status = status_pb2.Status(code=grpc.StatusCode.FAILED_PRECONDITION.value[0], message=reason)
    status.details.add().Pack(detail)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, reason)


async def serve(provider: Provider) -> tuple[grpc.aio.Server, int]:
    """Begin to serve on a free loopback port."""
    server = grpc.aio.server()
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


async def _run(engine: str, parent: int) -> None:
    # A pidfd, not PR_SET_PDEATHSIG: that one follows the *thread* which started us, and Go's threads
    # come and go while the engine lives on.
    pidfd = os.pidfd_open(parent)
    dismissed = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, dismissed.set)  # how the engine lets us go
    server, port = await serve(Provider(borders(Site.here(os.environ)), EngineLog(engine)))
    print(port, flush=True)  # how the engine learns where to call
    over = [asyncio.create_task(dismissed.wait()), asyncio.create_task(ended(pidfd))]
    if os.getppid() == parent:
        await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
    for task in over:
        task.cancel()
    await server.stop(STOP_S)


def main() -> int:
    """`pulumi-resource-letterpress ENGINE`, as the engine starts its plugins."""
    parent = os.getppid()
    if len(sys.argv) != 2:
        print("pulumi-resource-letterpress is started by the Pulumi engine, not by hand", file=sys.stderr)
        return 2
    try:
        asyncio.run(_run(sys.argv[1], parent))
    except (InfraError, ProcessLookupError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
