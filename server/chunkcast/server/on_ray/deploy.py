"""``chunkcast-serve --ray``: replicas of the servicer on a Ray cluster, and their life until SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import structlog

from chunkcast.server.config import ServeConfig
from chunkcast.server.errors import BadFlag
from chunkcast.server.on_ray.replica import PolicyReplica, for_replicas
from chunkcast.server.serving import Serving

APPLICATION = "chunkcast"
LOOPBACK = "127.0.0.1"
SERVICERS = [
    "chunkcast.v1.policy_pb2_grpc.add_PolicyServiceServicer_to_server",
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
]
SPARE_CALLS = 64
"""A replica's, beside its streams: health probes, specifications, outcomes."""

PROXY_SECONDS = 10.0
"""For the proxy of this machine to listen."""

HEALTH_SECONDS = 2.0
"""Between two looks at a replica; one that died is noticed when its actor ends, without them."""

log = structlog.get_logger()


def deployment(config: ServeConfig) -> Any:
    """The application, for ``ray.serve.run`` or ``serve run``.

    Args:
        config: as of ``chunkcast-serve``; ``replicas``, ``max_replicas`` and ``streams_per_replica`` say how many.
    """
    from ray import serve

    scale: dict[str, Any] = {"num_replicas": config.replicas}
    if config.max_replicas > config.replicas:
        scale = {
            "autoscaling_config": {
                "min_replicas": config.replicas,
                "max_replicas": config.max_replicas,
                "target_ongoing_requests": config.streams_per_replica,
            }
        }
    made: Any = serve.deployment(
        PolicyReplica,
        name="policy",
        max_ongoing_requests=config.max_streams + SPARE_CALLS,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=config.drain_seconds,
        ray_actor_options={"num_cpus": config.threads, "num_gpus": config.replica_gpus},
        **scale,
    )
    return made.bind(for_replicas(config))


def serve_on_ray(config: ServeConfig) -> None:
    """Deploy, say when it is ready, and take it down on SIGTERM or Ctrl-C.

    Raises:
        BadFlag: the port is taken, or the cluster cannot be reached.
    """
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions

    port = int(config.listen.rsplit(":", 1)[1])
    if not config.ray_address:
        _require_free("--listen", "", port)
        _require_free("--ray-http-port", LOOPBACK, config.ray_http_port)
    # Here first: what a replica refuses would come back as Ray's own error, after some attempts.
    Serving.of(config).policies.close()
    # Read by the proxy's process, which a cluster that is there already started with its own environment.
    os.environ["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"] = str(config.max_message_mb * 2**20)
    log.info(
        "starting Ray, for up to a minute" if not config.ray_address else "joining Ray", cluster=config.ray_address
    )
    try:
        ray.init(
            address=config.ray_address or "local",
            namespace=APPLICATION,
            logging_level=logging.WARNING,
            log_to_driver=False,
            include_dashboard=False if not config.ray_address else None,
            configure_logging=True,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BadFlag(f"--ray-address {config.ray_address}: no Ray cluster ({str(error).splitlines()[0]})") from None
    deployed = False
    try:
        serve.start(
            proxy_location=ProxyLocation.EveryNode,
            http_options=HTTPOptions(host=LOOPBACK, port=config.ray_http_port),
            grpc_options=gRPCOptions(port=port, grpc_servicer_functions=SERVICERS),
        )
        if APPLICATION in serve.status().applications:
            raise BadFlag(
                f"--ray-address {config.ray_address}: another chunkcast-serve serves there already; end that first "
                "(where it was killed, what it left ends with serve shutdown), or serve on another cluster"
            )
        deployed = True
        serve.run(deployment(config), name=APPLICATION, route_prefix="/")
        # Only now: Ray has put handlers of its own in place, which would abort.
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        _require_reached(port)
        log.info("ready", port=port, replicas=config.replicas, most=max(config.max_replicas, config.replicas))
        print(f"ready grpc=0.0.0.0:{port} replicas={config.replicas}", flush=True)
        stop.wait()
        log.info("stopping")
    except RuntimeError as error:
        raise BadFlag(
            f"Ray could not deploy the policy ({str(error).splitlines()[0]}); the logs of its session say why, on this "
            "machine in /tmp/ray/session_latest/logs"
        ) from None
    finally:
        # Of a cluster that others serve on, no more than what is this program's.
        if not config.ray_address:
            serve.shutdown()
        elif deployed:
            serve.delete(APPLICATION, _blocking=True)
        ray.shutdown()


def _require_reached(port: int) -> None:
    """On a cluster that serves already, the ports are those that it was started with.

    Raises:
        BadFlag: no proxy of this machine listens on ``port``.
    """
    deadline = time.monotonic() + PROXY_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1.0):
            return
        time.sleep(0.1)
    raise BadFlag(
        f"--listen: no proxy of Ray listens on port {port} here; a cluster that serves already keeps its gRPC port and "
        "servicers (serve shutdown ends it)"
    )


def _require_free(flag: str, host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BadFlag(f"{flag}: port {port} cannot be had ({error.strerror})") from None
