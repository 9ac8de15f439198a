"""The gRPC servers: what they accept, from whom, and where they listen."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from chunkcast.server.connections import ConnectionAges
from chunkcast.server.security.authentication import Authentication
from chunkcast.server.security.certificates import ServerCertificate
from chunkcast.server.security.decoding import Decoding

KEEPALIVE_MS = 10_000
"""A robot that does not answer a ping for as long again is gone."""

HANDSHAKE_MS = 10_000
"""A client that connects and says nothing, or half a TLS handshake. gRPC's own limit is two minutes."""

IDLE_MS = 60_000
"""A connection without a call; its peer opens another when it has one."""

ADMIN_MESSAGE_BYTES = 64 * 2**10
"""Names of policies, versions and bundles."""

ADMIN_CALLS = 16

METADATA_BYTES = 16 * 2**10

COMMON_OPTIONS: list[tuple[str, int]] = [
    # A second server on the same port would take half of the robots without a word.
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
    ("grpc.max_connection_idle_ms", IDLE_MS),
    ("grpc.max_metadata_size", METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES),
]


def data_server(
    *, max_message_bytes: int, max_calls: int, max_connections: int, ages: ConnectionAges, access: Authentication | None
) -> grpc.aio.Server:
    """For robots.

    Args:
        max_message_bytes: a larger message is refused before it is read.
        max_calls: at the same time; streams and waiting observations have bounds and hints of their own, this one
            bounds what is not yet read.
        max_connections: further ones are closed at once.
        ages: how old a connection may become.
        access: who may call, or ``None`` if anyone may.
    """
    options = [
        *COMMON_OPTIONS,
        *ages.grpc_options(),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_allowed_incoming_connections", max_connections),
        # A robot that lost power does not close its stream: without pings it would stay for hours.
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        # Robots ping every 2 s, to notice a server that lost power.
        ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ]
    return _server(options, max_calls, access)


def admin_server(access: Authentication | None) -> grpc.aio.Server:
    """For operators."""
    options = [
        *COMMON_OPTIONS,
        ("grpc.max_receive_message_length", ADMIN_MESSAGE_BYTES),
        ("grpc.max_allowed_incoming_connections", ADMIN_CALLS),
    ]
    return _server(options, ADMIN_CALLS, access)


def _server(options: Sequence[tuple[str, int]], max_calls: int, access: Authentication | None) -> grpc.aio.Server:
    interceptors: list[grpc.aio.ServerInterceptor] = [*([access] if access else []), Decoding()]
    return grpc.aio.server(options=options, interceptors=interceptors, maximum_concurrent_rpcs=max_calls)


def bind(server: grpc.aio.Server, address: str, certificate: ServerCertificate | None) -> str:
    """Listen on ``address``; returns it with its port resolved.

    Raises:
        OSError: it cannot be bound.
    """
    try:
        port = (
            server.add_secure_port(address, certificate.grpc_credentials())
            if certificate
            else server.add_insecure_port(address)
        )
    except RuntimeError:
        raise OSError(
            f"cannot listen on {address}; is another server on it, or is it no address of this machine?"
        ) from None
    return f"{address.rsplit(':', 1)[0]}:{port}"
