"""A server's life: load and warm the bundles, listen, become ready, drain on SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from chunkcast.server.admin_service import AdminService
from chunkcast.server.config import ServeConfig
from chunkcast.server.policies import Policies
from chunkcast.server.security.authentication import Authentication
from chunkcast.server.security.certificates import ServerCertificate
from chunkcast.server.security.secret_files import SecretFiles
from chunkcast.server.service import PolicyService
from chunkcast.server.serving import SERVICE_NAME, SWITCH_SECONDS, Serving
from chunkcast.server.statistics import ServerStatistics
from chunkcast.server.status.live import LiveHistory
from chunkcast.server.tracing import Tracing
from chunkcast.server.transport import admin_server, bind, data_server
from chunkcast.server.web import WebPage
from chunkcast.v1 import admin_pb2, admin_pb2_grpc
from chunkcast.v1 import policy_pb2_grpc as pb_grpc

SPARE_CALLS = 64
"""Health probes, specifications, outcomes: unary calls that compute nothing."""

CONNECTIONS_PER_STREAM = 4
"""A robot needs one; another while it moves to it, and some for whoever looks."""

NOTICE_SECONDS = 1.0
"""For those who watch the health service to be told that it ends."""

WATCH_SECONDS = 1.0
"""Between two looks at the files of certificates and tokens."""

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
    _tracing: Tracing
    _tasks: list[asyncio.Task[None]]

    async def stop(self, drain_seconds: float) -> None:
        """NOT_SERVING first; streams end after their next answer, and at the latest after ``drain_seconds``."""
        log.info("draining", seconds=drain_seconds)
        if self._page:
            self._page.ready = False
        with suppress(TimeoutError):  # one who watches and takes no answer
            await asyncio.wait_for(self._health.enter_graceful_shutdown(), NOTICE_SECONDS)
        for task in self._tasks:
            task.cancel()
        if self._admin:
            await self._admin.stop(0.0)
        self._service.drain()
        await self._server.stop(drain_seconds)
        self._policies.close()
        if self._page:
            self._page.close()
        await asyncio.to_thread(self._tracing.close)
        log.info("stopped")


async def start_server(config: ServeConfig) -> RunningServer:
    """Load, warm, listen; returns when ready.

    Raises:
        BundleError: a bundle cannot be served.
        ProviderMissing: a requested execution provider cannot be used.
        BadFlag: a certificate or a file of tokens cannot be used.
        OSError: an address cannot be bound.
    """
    started = time.perf_counter()
    secrets = SecretFiles(config)
    if config.cpus:
        os.sched_setaffinity(0, config.cpus)
    serving = Serving.of(config)
    policies, statistics, store, service = serving.policies, serving.statistics, serving.store, serving.service
    server = data_server(
        max_message_bytes=config.max_message_mb * 2**20,
        max_calls=config.max_streams + config.max_waiting + SPARE_CALLS,
        max_connections=CONNECTIONS_PER_STREAM * config.max_streams + SPARE_CALLS,
        ages=serving.ages,
        access=secrets.access(secrets.tokens, statistics),
    )
    pb_grpc.add_PolicyServiceServicer_to_server(service, server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = bind(server, config.listen, secrets.certificate)
    admin_access = secrets.access(secrets.admin_tokens, statistics)
    admin, admin_address = _admin(config, AdminService(policies, store), admin_access, secrets.certificate)
    live = LiveHistory(statistics)
    page = _web_page(config, statistics, live, secrets)
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
        _tracing=serving.tracing,
        _tasks=[asyncio.create_task(_watch_secrets(secrets, service, statistics), name="secrets")],
    )
    if page:
        page.ready = True
    if store and config.watch:
        running._tasks.append(asyncio.create_task(store.watch(), name="watch"))
    if page:
        running._tasks.append(asyncio.create_task(live.run(), name="live"))
    if config.insecure:
        log.warning("--insecure: whoever reaches this server may use it, and whoever listens may read along")
    log.info(
        "ready",
        policies={version.spec.name: version.spec.version for version in policies.promoted},
        listen=running.address,
        metrics=running.metrics_address,
        admin=running.admin_address,
        seconds=round(time.perf_counter() - started, 3),
    )
    return running


async def _watch_secrets(secrets: SecretFiles, service: PolicyService, statistics: ServerStatistics) -> None:
    """Look at the files again and again, and end the streams of clients whose token is gone."""
    while True:
        try:
            await asyncio.to_thread(secrets.refresh)
        except Exception:
            # A watch that ends silently would leave revoked tokens good for ever.
            log.exception("certificate and tokens could not be looked at")
        # Also if nothing has changed: a call may have been let in by a token that is gone, and open its stream now.
        if secrets.tokens:
            service.end_streams_without(secrets.tokens)
        if secrets.certificate:
            statistics.certificate_expires = secrets.certificate.expires
        await asyncio.sleep(WATCH_SECONDS)


def _admin(
    config: ServeConfig,
    service: AdminService,
    access: Authentication | None,
    certificate: ServerCertificate | None,
) -> tuple[grpc.aio.Server | None, str | None]:
    if not config.admin_listen:
        return None, None
    server = admin_server(access)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(service, server)
    reflection.enable_server_reflection((ADMIN_SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server, bind(server, config.admin_listen, certificate)


def _web_page(
    config: ServeConfig, statistics: ServerStatistics, live: LiveHistory, secrets: SecretFiles
) -> WebPage | None:
    if not config.metrics_listen:
        return None
    host, port = config.metrics_listen.rsplit(":", 1)
    context = secrets.certificate.page_context() if secrets.certificate else None
    try:
        return WebPage(statistics, live, host.strip("[]"), int(port), tls=context, tokens=secrets.admin_tokens)
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
