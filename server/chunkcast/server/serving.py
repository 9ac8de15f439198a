"""What serves, without what listens: policies, statistics and the servicer, for whichever transport."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from chunkcast.server.batcher import BatcherConfig
from chunkcast.server.config import ServeConfig
from chunkcast.server.connections import ConnectionAges
from chunkcast.server.errors import BundleError
from chunkcast.server.policies import EngineConfig, Policies
from chunkcast.server.security.limits import ClientLimits
from chunkcast.server.service import PolicyService
from chunkcast.server.statistics import ServerStatistics
from chunkcast.server.store import Store
from chunkcast.server.tracing import NoTracing, OpenTelemetry, Tracing
from chunkcast.v1 import policy_pb2 as pb

SWITCH_SECONDS = 0.0002
"""How long a thread waits for Python's lock before it asks for it. By default 5 ms: a batch that is done would lie
there for longer than it took to compute, while the event loop reads and writes (32 robots: 2,000 chunks/s; with this
3,000)."""

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["PolicyService"].full_name

log = structlog.get_logger()


@dataclass(frozen=True)
class Serving:
    """A servicer and what it serves.

    Attributes:
        policies: loaded and warm.
        statistics: where everything counts.
        store: where further versions come from, if there is one.
        ages: of connections.
        tracing: where spans go.
        service: answers robots.
    """

    policies: Policies
    statistics: ServerStatistics
    store: Store | None
    ages: ConnectionAges
    tracing: Tracing
    service: PolicyService

    @classmethod
    def of(cls, config: ServeConfig) -> Serving:
        """Load and warm what ``config`` names.

        Raises:
            BundleError: a bundle cannot be served.
            ProviderMissing: a requested execution provider cannot be used.
        """
        tracing = OpenTelemetry.to_collector(config.traces, config.trace_share) if config.traces else NoTracing()
        statistics = ServerStatistics()
        policies = Policies(
            statistics,
            EngineConfig(config.threads, config.providers, config.health_share, config.text_encoders),
            BatcherConfig(config.max_batch, config.max_delay_ms / 1e3, config.max_waiting),
        )
        store = Store(config.store, policies, statistics) if config.store else None
        _load(config, policies, store)
        ages = ConnectionAges(config.max_connection_age)
        service = PolicyService(
            policies,
            statistics,
            config.max_streams,
            limits=ClientLimits(config.max_client_streams, config.max_client_rate),
            ages=ages,
            tracing=tracing,
        )
        return cls(policies, statistics, store, ages, tracing, service)


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
