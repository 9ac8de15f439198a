"""One replica: policies loaded and warmed, and the servicer's methods by gRPC's names, as Ray's proxy calls them."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import grpc
import structlog
from grpc_health.v1 import health_pb2

from chunkcast.server.config import ServeConfig
from chunkcast.server.memory import keep_memory_whole
from chunkcast.server.on_ray.call_context import CallContext
from chunkcast.server.serving import SERVICE_NAME, SWITCH_SECONDS, Serving
from chunkcast.server.status.live import LiveHistory
from chunkcast.server.web import WebPage
from chunkcast.v1 import policy_pb2 as pb

Answer = TypeVar("Answer")

WATCH_SECONDS = 30.0
"""That health is watched at a time."""

PAGES = 64
"""Replicas of one machine take the first free port from --metrics-listen's on."""

log = structlog.get_logger()


class PolicyReplica:
    """Answers robots on Ray Serve.

    Args:
        config: as of ``chunkcast-serve``; replicas share nothing but it.

    Raises:
        BundleError: a bundle cannot be served.
    """

    def __init__(self, config: ServeConfig) -> None:
        keep_memory_whole()
        sys.setswitchinterval(SWITCH_SECONDS)
        # Ray sets it to the processors that a replica asked for; the engine has its own flag.
        os.environ.pop("OMP_NUM_THREADS", None)
        self._serving = Serving.of(config)
        self._live = LiveHistory(self._serving.statistics)
        self._page = _page(config, self._serving, self._live)
        self._watching: asyncio.Task[None] | None = None
        gc.collect()
        gc.freeze()
        log.info("replica ready", metrics=self._page.port if self._page else None, process=os.getpid())

    async def check_health(self) -> None:
        """Ray asks every few seconds, and replaces a replica that raises."""
        if self._watching is None and self._page:
            self._page.ready = True
            self._watching = asyncio.create_task(self._live.run(), name="live")
        if not self._serving.policies.promoted:
            raise RuntimeError("no policy is served")

    async def StreamActions(  # noqa: N802 (gRPC's name)
        self, requests: AsyncIterator[pb.StreamActionsRequest], grpc_context: Any
    ) -> AsyncIterator[pb.StreamActionsResponse]:
        """A robot's stream: answers as they are made."""
        context = CallContext(grpc_context, requests)
        call = asyncio.ensure_future(self._serving.service.StreamActions(None, context))  # type: ignore[arg-type]
        try:
            while not call.done():
                answer = asyncio.ensure_future(context.next_answer())
                try:
                    await asyncio.wait((answer, call), return_when=asyncio.FIRST_COMPLETED)
                    if answer.done():
                        yield answer.result()
                finally:
                    answer.cancel()
            for left in context.answers_left():
                yield left
            await call
        finally:
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    async def PredictChunk(  # noqa: N802
        self, request: pb.PredictChunkRequest, grpc_context: Any
    ) -> pb.PredictChunkResponse:
        """As the servicer's."""
        return await self._unary(self._serving.service.PredictChunk, request, grpc_context)

    async def ListPolicies(  # noqa: N802
        self, request: pb.ListPoliciesRequest, grpc_context: Any
    ) -> pb.ListPoliciesResponse:
        """As the servicer's."""
        return await self._unary(self._serving.service.ListPolicies, request, grpc_context)

    async def GetPolicy(self, request: pb.GetPolicyRequest, grpc_context: Any) -> pb.GetPolicyResponse:  # noqa: N802
        """As the servicer's."""
        return await self._unary(self._serving.service.GetPolicy, request, grpc_context)

    async def ReportEpisode(  # noqa: N802
        self, request: pb.ReportEpisodeRequest, grpc_context: Any
    ) -> pb.ReportEpisodeResponse:
        """As the servicer's; the replica's own statistics, which Prometheus adds up."""
        return await self._unary(self._serving.service.ReportEpisode, request, grpc_context)

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, grpc_context: Any
    ) -> health_pb2.HealthCheckResponse:
        """GRPC's health service: a replica that is asked is ready."""
        if request.service not in ("", SERVICE_NAME):
            grpc_context.set_code(grpc.StatusCode.NOT_FOUND)
            return health_pb2.HealthCheckResponse()
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, grpc_context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """GRPC's health service; whoever watches on asks again, since Ray counts a watcher as work."""
        known = request.service in ("", SERVICE_NAME)
        status = health_pb2.HealthCheckResponse
        yield status(status=status.SERVING if known else status.SERVICE_UNKNOWN)
        await asyncio.sleep(WATCH_SECONDS)

    async def _unary(self, method: Callable[..., Awaitable[Answer]], request: Any, grpc_context: Any) -> Answer:
        return await method(request, CallContext(grpc_context))


def _page(config: ServeConfig, serving: Serving, live: LiveHistory) -> WebPage | None:
    """The replica's metrics and status page."""
    if not config.metrics_listen:
        return None
    host, port = config.metrics_listen.rsplit(":", 1)
    first = int(port)
    for number in range(first, first + PAGES):
        try:
            return WebPage(serving.statistics, live, host.strip("[]"), number if first else 0, tls=None, tokens=None)
        except OSError:
            continue
    raise OSError(f"no free port for metrics from {first} to {first + PAGES - 1}")


def for_replicas(config: ServeConfig) -> ServeConfig:
    """``config`` as every replica takes it, wherever it runs."""
    absolute = tuple(bundle.resolve() for bundle in config.bundle)
    encoders = config.text_encoders.resolve() if config.text_encoders else None
    return replace(config, bundle=absolute, text_encoders=encoders)
