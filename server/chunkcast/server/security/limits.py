"""How much of the server one client may take: streams at a time, and requests a second."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

BURST_SECONDS = 0.1
"""A client that was quiet may send as much at once as is its due in this time, and ``LEAST_BURST`` in any case."""

LEAST_BURST = 8.0

LONGEST_WAIT = 1.0
"""Seconds that a client is told to wait, at most."""

MAX_REMEMBERED = 4096
"""Clients without a stream whose last requests are remembered; the one that was quiet longest is forgotten first."""


@dataclass
class _Account:
    allowance: float
    at: float
    promised: float = 0.0
    streams: int = 0


class ClientLimits:
    """Counts by client. For the event loop's thread.

    Args:
        max_streams: of one client at a time; 0 sets no limit.
        max_rate: requests of one client a second, over all its streams; 0 sets no limit.
    """

    def __init__(self, max_streams: int = 0, max_rate: float = 0.0) -> None:
        self.max_streams, self.max_rate = max_streams, max_rate
        self._burst = max(LEAST_BURST, max_rate * BURST_SECONDS)
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    def open_stream(self, client: str) -> bool:
        """Whether it may have another stream; it is counted until ``close_stream``."""
        account = self._account(client)
        if self.max_streams and account.streams >= self.max_streams:
            return False
        account.streams += 1
        return True

    def close_stream(self, client: str) -> None:
        """A stream of ``client`` is over."""
        self._account(client).streams -= 1

    def take(self, client: str) -> float:
        """Count a request; returns 0, or the seconds until the client may make one again: it must be refused then. Of
        several that are refused each is given a time of its own: its streams do not all come back at once, to be
        refused again but for one.
        """
        if not self.max_rate:
            return 0.0
        now, account = time.monotonic(), self._account(client)
        account.allowance = min(self._burst, account.allowance + (now - account.at) * self.max_rate)
        account.at = now
        if account.allowance < 1.0:
            earliest = now + (1.0 - account.allowance) / self.max_rate
            account.promised = min(now + LONGEST_WAIT, max(earliest, account.promised + 1.0 / self.max_rate))
            return account.promised - now
        account.allowance -= 1.0
        return 0.0

    def _account(self, client: str) -> _Account:
        account = self._accounts.get(client)
        if account is None:
            account = self._accounts[client] = _Account(self._burst, time.monotonic())
            if len(self._accounts) > MAX_REMEMBERED:
                self._forget_one()
        self._accounts.move_to_end(client)
        return account

    def _forget_one(self) -> None:
        for client, account in self._accounts.items():
            if not account.streams:
                del self._accounts[client]
                return
