"""A server's life: load and warm the bundles, listen, become ready, drain on SIGTERM or Ctrl-C."""

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

from chunkcast.server.admin_service import AdminService
from chunkcast.server.batcher import BatcherConfig
from chunkcast.server.config import ServeConfig
from chunkcast.server.errors import BundleError
from chunkcast.server.policies import EngineConfig, Policies
from chunkcast.server.service import PolicyService
from chunkcast.server.statistics import ServerStatistics
from chunkcast.server.status.live import LiveHistory
from chunkcast.server.store import Store
from chunkcast.server.web import WebPage
from chunkcast.v1 import admin_pb2, admin_pb2_grpc
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc

MAX_MESSAGE_BYTES = 16 * 2**20
"""Two raw 2048x1024 RGB cameras fit; a larger message is refused before it is read."""

KEEPALIVE_MS = 10_000
"""A robot that does not answer a ping for as long again is gone."""

SPARE_CALLS = 64
"""Health probes, specifications, outcomes: unary calls that compute nothing."""

SWITCH_SECONDS = 0.0002
"""How long a thread waits for Python's lock before it asks for it. By default 5 ms: a batch that is done would lie
there for longer than it took to compute, while the event loop reads and writes (32 robots: 2,000 chunks/s; with this
3,000)."""

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["PolicyService"].full_name
ADMIN_SERVICE_NAME = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name

log = structlog.get_logger()


@dataclass
class RunningServer:
    """A server that is ready.

    Attributes:
        address: host and port of gRPC, the port resolved.
        metrics_address: host and port of the metrics and status page, or ``None`` if there is none.
        admin_address: host and port of the admin service, or ``None`` if there is none.
    """

    address: str
    metrics_address: str | None
    admin_address: str | None
    _server: grpc.aio.Server
    _admin: grpc.aio.Server | None
    _service: PolicyService
    _policies: Policies
    _health: Any
    _page: WebPage | None
    _tasks: list[asyncio.Task[None]]

    async def stop(self, drain_seconds: float) -> None:
        """NOT_SERVING first; streams end after their next answer, and at the latest after ``drain_seconds``."""
        log.info("draining", seconds=drain_seconds)
        await self._health.enter_graceful_shutdown()
        for task in self._tasks:
            task.cancel()
        if self._admin:
            await self._admin.stop(0.0)
        self._service.drain()
        await self._server.stop(drain_seconds)
        self._policies.close()
        if self._page:
            self._page.close()
        log.info("stopped")


async def start_server(config: ServeConfig) -> RunningServer:
    """Load, warm, listen; returns when ready.

    Raises:
        BundleError: a bundle cannot be served.
        ProviderMissing: a requested execution provider cannot be used.
        OSError: an address cannot be bound.
    """
    started = time.perf_counter()
    if config.cpus:
        os.sched_setaffinity(0, config.cpus)
    statistics = ServerStatistics()
    policies = Policies(
        statistics,
        EngineConfig(config.threads, config.providers, config.health_share, config.text_encoders),
        BatcherConfig(config.max_batch, config.max_delay_ms / 1e3, config.max_waiting),
    )
    store = Store(config.store, policies, statistics) if config.store else None
    _load(config, policies, store)
    service = PolicyService(policies, statistics, config.max_streams)

    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            # A robot that lost power does not close its stream: without pings it would stay for hours.
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            # Robots ping every 2 s, to notice a server that lost power.
            ("grpc.http2.min_ping_interval_without_data_ms", 1000),
            # A second server on the same port would take half of the robots without a word.
            ("grpc.so_reuseport", 0),
        ],
        # Streams and waiting observations have bounds and hints of their own; this one bounds what is not yet read.
        maximum_concurrent_rpcs=config.max_streams + config.max_waiting + SPARE_CALLS,
    )
    pb_grpc.add_PolicyServiceServicer_to_server(service, server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = _bind(server, config.listen)
    admin, admin_address = _admin_server(config, policies, store)
    live = LiveHistory(statistics)
    page = _web_page(config, statistics, live)
    await server.start()
    if admin:
        await admin.start()
    # What start-up made lives as long as the server: the collector need not look at it between chunks.
    gc.collect()
    gc.freeze()
    for name in ("", SERVICE_NAME):
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    running = RunningServer(
        address=address,
        metrics_address=f"{config.metrics_listen.rsplit(':', 1)[0]}:{page.port}" if page else None,
        admin_address=admin_address,
        _server=server,
        _admin=admin,
        _service=service,
        _policies=policies,
        _health=health_servicer,
        _page=page,
        _tasks=[],
    )
    if store and config.watch:
        running._tasks.append(asyncio.create_task(store.watch(), name="watch"))
    if page:
        running._tasks.append(asyncio.create_task(live.run(), name="live"))
    log.info(
        "ready",
        policies={version.spec.name: version.spec.version for version in policies.promoted},
        listen=running.address,
        metrics=running.metrics_address,
        admin=running.admin_address,
        seconds=round(time.perf_counter() - started, 3),
    )
    return running


def _load(config: ServeConfig, policies: Policies, store: Store | None) -> None:
    """Everything that is served from the start."""
    folders = list(config.bundle)
    if not folders:
        assert store is not None
        assert config.store is not None
        folders = [config.store / name for name in store.names_by_age()]
        if not folders:
            raise BundleError(f"{config.store} holds no bundle; export one into it, or give --bundle DIR")
    if store:
        store.mark_seen()  # before loading: what appears meanwhile is for the watch
    for folder in folders:
        try:
            version = policies.add(policies.prepare(folder))
        except BundleError as refused:
            # What was asked for by name must be served; of a store, what can be.
            if config.bundle:
                raise
            log.warning("bundle refused", bundle=folder.name, reason=str(refused))
            continue
        policies.promote(version.spec.name, version.spec.version)
    if not policies.promoted:
        raise BundleError(f"{config.store} holds no bundle that can be served; the log says why of each")


def _bind(server: grpc.aio.Server, address: str) -> str:
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        raise OSError(f"cannot listen on {address}; is another server on it?") from None
    return f"{address.rsplit(':', 1)[0]}:{port}"


def _admin_server(
    config: ServeConfig, policies: Policies, store: Store | None
) -> tuple[grpc.aio.Server | None, str | None]:
    if not config.admin_listen:
        return None, None
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(policies, store), server)
    reflection.enable_server_reflection((ADMIN_SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server, _bind(server, config.admin_listen)


def _web_page(config: ServeConfig, statistics: ServerStatistics, live: LiveHistory) -> WebPage | None:
    if not config.metrics_listen:
        return None
    host, port = config.metrics_listen.rsplit(":", 1)
    try:
        return WebPage(statistics, live, host.strip("[]"), int(port))
    except OSError as error:
        raise OSError(f"cannot listen on {config.metrics_listen} for metrics ({error.strerror})") from None


async def serve(config: ServeConfig) -> None:
    """Run until SIGTERM or SIGINT, then drain.

    The ready line on standard output is for programs that start a server; everything else goes to the log.
    """
    stop = asyncio.Event()
    sys.setswitchinterval(SWITCH_SECONDS)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if config.stop_with_stdin:
        loop.add_reader(sys.stdin.fileno(), _stop_at_end_of_stdin, stop)
    running = await start_server(config)
    ready = {"grpc": running.address, "metrics": running.metrics_address, "admin": running.admin_address}
    print("ready", *(f"{name}={address or '-'}" for name, address in ready.items()), flush=True)
    await stop.wait()
    await running.stop(config.drain_seconds)


def _stop_at_end_of_stdin(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stop.set()
