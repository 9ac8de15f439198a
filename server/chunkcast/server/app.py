"""A server's life: load and warm the bundle, listen, become ready, drain on SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from chunkcast.server.bundle import read_bundle
from chunkcast.server.config import ServeConfig
from chunkcast.server.engine import Engine
from chunkcast.server.prometheus_page import MetricsPage
from chunkcast.server.service import PolicyService
from chunkcast.server.statistics import ServerStatistics
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc

MAX_MESSAGE_BYTES = 16 * 2**20
"""Two raw 2048x1024 RGB cameras fit; a larger message is refused before it is read."""

KEEPALIVE_MS = 10_000
"""A robot that does not answer a ping for as long again is gone."""

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["PolicyService"].full_name

log = structlog.get_logger()


@dataclass
class RunningServer:
    """A server that is ready.

    Attributes:
        address: host and port of gRPC, the port resolved.
        metrics_address: host and port of the metrics page, or ``None`` if there is none.
    """

    address: str
    metrics_address: str | None
    _server: grpc.aio.Server
    _service: PolicyService
    _health: Any
    _engine: Engine
    _page: MetricsPage | None

    async def stop(self, drain_seconds: float) -> None:
        """NOT_SERVING first; streams end after their next answer, and at the latest after ``drain_seconds``."""
        log.info("draining", seconds=drain_seconds)
        await self._health.enter_graceful_shutdown()
        self._service.drain()
        await self._server.stop(drain_seconds)
        self._engine.close()
        if self._page:
            self._page.close()
        log.info("stopped")


async def start_server(config: ServeConfig) -> RunningServer:
    """Load, warm, listen; returns when ready.

    Raises:
        BundleError: the bundle cannot be served.
        OSError: an address cannot be bound.
    """
    started = time.perf_counter()
    if config.cpus:
        os.sched_setaffinity(0, config.cpus)
    bundle = read_bundle(config.bundle)
    engine = Engine(bundle, config.threads)
    warm_run = engine.warm_up()
    statistics = ServerStatistics([bundle.spec])
    service = PolicyService([engine], statistics)

    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            # A robot that lost power does not close its stream: without pings it would stay for hours.
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            # A second server on the same port would take half of the robots without a word.
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=config.max_streams,
    )
    pb_grpc.add_PolicyServiceServicer_to_server(service, server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    host = config.listen.rsplit(":", 1)[0]
    try:
        port = server.add_insecure_port(config.listen)
    except RuntimeError:
        raise OSError(f"cannot listen on {config.listen}; is another server on it?") from None
    page = _metrics_page(config, statistics)
    await server.start()
    # What start-up made lives as long as the server: the collector need not look at it between chunks.
    gc.collect()
    gc.freeze()
    for name in ("", SERVICE_NAME):
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    running = RunningServer(
        address=f"{host}:{port}",
        metrics_address=f"{config.metrics_listen.rsplit(':', 1)[0]}:{page.port}" if page else None,
        _server=server,
        _service=service,
        _health=health_servicer,
        _engine=engine,
        _page=page,
    )
    log.info(
        "ready",
        policy=bundle.spec.name,
        version=bundle.spec.version,
        listen=running.address,
        metrics=running.metrics_address,
        seconds=round(time.perf_counter() - started, 3),
        warm_run_ms=round(warm_run * 1e3, 3),
    )
    return running


def _metrics_page(config: ServeConfig, statistics: ServerStatistics) -> MetricsPage | None:
    if not config.metrics_listen:
        return None
    host, port = config.metrics_listen.rsplit(":", 1)
    try:
        return MetricsPage(statistics, host.strip("[]"), int(port))
    except OSError as error:
        raise OSError(f"cannot listen on {config.metrics_listen} for metrics ({error.strerror})") from None


async def serve(config: ServeConfig) -> None:
    """Run until SIGTERM or SIGINT, then drain.

    The ready line on standard output is for programs that start a server; everything else goes to the log.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if config.stop_with_stdin:
        loop.add_reader(sys.stdin.fileno(), _stop_at_end_of_stdin, stop)
    running = await start_server(config)
    print(f"ready grpc={running.address} metrics={running.metrics_address or '-'}", flush=True)
    await stop.wait()
    await running.stop(config.drain_seconds)


def _stop_at_end_of_stdin(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stop.set()
