"""How old a connection may become, and when the robots on it are told.

gRPC itself tells a connection's peer to open another for further calls (GOAWAY), at the age that it is given, 10 %
sooner or later. A stream that is open goes on where it is, until the grace ends: it needs a hint of its own.
"""

from __future__ import annotations

import time
from collections import OrderedDict

JITTER = 0.1
"""GRPC's, so that the connections of a server that was restarted do not all end at the same time."""

GRACE_SECONDS = 30.0
"""From the hint to the stream's end, at the latest: also of one that is silent."""

HEED_SECONDS = 20.0
"""A robot that does not know the hint is sent away after an answer when so long has passed: it has a chunk then."""

MAX_REMEMBERED = 4096


class ConnectionAges:
    """Says of each connection when its streams are to go elsewhere. For the event loop's thread.

    Args:
        max_age: seconds; 0 sets no limit.
    """

    def __init__(self, max_age: float) -> None:
        self._max_age = max_age
        self._renewals: OrderedDict[str, float] = OrderedDict()

    def grpc_options(self) -> list[tuple[str, int]]:
        """The channel arguments of a server."""
        if not self._max_age:
            return []
        # Counted from the connection's beginning, whose first stream may be opened later; streams are ended before.
        grace = (1.0 + 3.0 * JITTER) * self._max_age + GRACE_SECONDS
        return [
            ("grpc.max_connection_age_ms", round(self._max_age * 1e3)),
            ("grpc.max_connection_age_grace_ms", round(grace * 1e3)),
        ]

    def renew_at(self, peer: str) -> float:
        """When the streams of the connection from ``peer`` are told to open another: monotonic seconds.

        Args:
            peer: gRPC's name of it, with its port: one connection.
        """
        if not self._max_age:
            return float("inf")
        now = time.monotonic()
        while self._renewals and next(iter(self._renewals.values())) + GRACE_SECONDS < now:
            self._renewals.popitem(last=False)
        if len(self._renewals) >= MAX_REMEMBERED:
            self._renewals.popitem(last=False)
        # By then gRPC has told the connection's peer: what the robot opens goes to another one.
        return self._renewals.setdefault(peer, now + (1.0 + JITTER) * self._max_age)
