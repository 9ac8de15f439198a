"""How long to wait before the next attempt to connect."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass
class Backoff:
    """Exponential backoff with full jitter: a fleet that lost its server does not come back all at once.

    Attributes:
        first: upper bound of the first wait, seconds.
        longest: upper bound of any wait.
    """

    first: float = 0.05
    longest: float = 2.0
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
