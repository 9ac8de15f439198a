"""Connecting again: how long to wait before the next attempt, and whether what is back is still the same policy."""

from __future__ import annotations

import random
from dataclasses import dataclass

from chunkcast.client.errors import RobotMismatch
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import contract_difference

RENEW_SECONDS = 0.5
"""Between two attempts to open the successor of a stream that will end soon."""


@dataclass
class Backoff:
    """Exponential backoff with full jitter: a fleet that lost its server does not come back all at once.

    Attributes:
        first: upper bound of the first wait, seconds.
        longest: upper bound of any wait.
    """

    first: float = 0.05
    longest: float = 0.5
    _attempt: int = 0

    def next_wait(self) -> float:
        """Seconds, uniform between 0 and a bound that doubles with each attempt."""
        # The exponent is bounded, so that a night without a server does not overflow.
        bound = min(self.longest, self.first * 2.0 ** min(self._attempt, 32))
        self._attempt += 1
        return random.uniform(0.0, bound)  # noqa: S311 (jitter, no secret)

    def reset(self) -> None:
        """There is a connection again."""
        self._attempt = 0


def require_same_contract(played: pb.PolicySpec, served: pb.PolicySpec) -> None:
    """Accept another version of the policy that is played.

    Raises:
        RobotMismatch: its contract is another.
    """
    if difference := contract_difference(played, served):
        raise RobotMismatch(
            f"{played.name} is now version {served.version} with another contract: {difference}; make another player"
        )
