"""The AdminService: an operator's hands on the policies, over gRPC on a port of its own."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc

from chunkcast.server.errors import BundleError, PolicyError, ProviderMissing, UnknownPolicy
from chunkcast.server.policies import Policies, PolicyVersion
from chunkcast.server.store import Store
from chunkcast.v1 import admin_pb2 as pb
from chunkcast.v1 import admin_pb2_grpc as pb_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class AdminService(pb_grpc.AdminServiceServicer):
    """Loads, promotes, rolls back and unloads.

    Args:
        policies: what is served.
        store: where bundles are loaded from, or ``None`` if none may be.
    """

    def __init__(self, policies: Policies, store: Store | None) -> None:
        self._policies, self._store = policies, store

    async def ListVersions(  # noqa: N802 (gRPC's name; documented in the proto)
        self, request: pb.ListVersionsRequest, context: Context
    ) -> pb.ListVersionsResponse:
        return pb.ListVersionsResponse(versions=[self._describe(version) for version, *_ in self._policies.list()])

    async def LoadBundle(  # noqa: N802
        self, request: pb.LoadBundleRequest, context: Context
    ) -> pb.LoadBundleResponse:
        if self._store is None:
            message = "this server has no store; start it with --store DIR, whose sub-folders are bundles"
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, message)
        try:
            version = await self._store.load(request.bundle)
            if request.promote:
                self._policies.promote(version.spec.name, version.spec.version)
        except (BundleError, ProviderMissing, PolicyError) as refused:
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(refused))
        return pb.LoadBundleResponse(version=self._describe(version))

    async def PromoteVersion(  # noqa: N802
        self, request: pb.PromoteVersionRequest, context: Context
    ) -> pb.PromoteVersionResponse:
        try:
            version = self._policies.promote(request.policy, request.version)
        except (PolicyError, UnknownPolicy) as refused:
            await _abort(context, _code(refused), str(refused))
        return pb.PromoteVersionResponse(version=self._describe(version))

    async def RollBack(  # noqa: N802
        self, request: pb.RollBackRequest, context: Context
    ) -> pb.RollBackResponse:
        try:
            version = self._policies.roll_back(request.policy)
        except (PolicyError, UnknownPolicy) as refused:
            await _abort(context, _code(refused), str(refused))
        return pb.RollBackResponse(version=self._describe(version))

    async def UnloadVersion(  # noqa: N802
        self, request: pb.UnloadVersionRequest, context: Context
    ) -> pb.UnloadVersionResponse:
        try:
            self._policies.unload(request.policy, request.version)
        except (PolicyError, UnknownPolicy) as refused:
            await _abort(context, _code(refused), str(refused))
        return pb.UnloadVersionResponse()

    def _describe(self, version: PolicyVersion) -> pb.LoadedVersion:
        state = pb.VERSION_STATE_LOADED
        for other, promoted, previous in self._policies.list():
            if other is version and (promoted or previous):
                state = pb.VERSION_STATE_PROMOTED if promoted else pb.VERSION_STATE_PREVIOUS
        return pb.LoadedVersion(
            policy=version.spec.name,
            version=version.spec.version,
            state=state,
            pinned_streams=version.pinned_streams,
            chunks=version.chunks,
        )


def _code(refused: Exception) -> grpc.StatusCode:
    unknown = isinstance(refused, UnknownPolicy)
    return grpc.StatusCode.NOT_FOUND if unknown else grpc.StatusCode.FAILED_PRECONDITION


async def _abort(context: Context, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError("abort raises")
