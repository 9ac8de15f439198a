"""What an arm did, tick by tick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Did = Literal["played", "rested", "stopped"]
"""``played`` an action that a chunk knew for this tick; ``rested``: no chunk knew it, and it held or slowed down as it
is set to; ``stopped``: it had done so for as long as it may, and ``safe_stop`` was called."""


@dataclass(frozen=True)
class Tick:
    """One control tick.

    Attributes:
        at: monotonic seconds.
        did: see ``Did``.
        version: that the chunk came from.
        episode: counted; between two of them the simulation is reset.
    """

    at: float
    did: Did
    version: str = ""
    episode: int = 0


@dataclass
class Timeline:
    """An arm's ticks.

    Attributes:
        ticks: in their order.
        chunk_at: monotonic seconds at which each chunk arrived.
        errors: what was raised at ticks at which the arm stopped.
    """

    ticks: list[Tick] = field(default_factory=list)
    chunk_at: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def resumed_after(self, moment: float) -> float | None:
        """Seconds from ``moment`` to the first chunk afterwards, or ``None`` if there was none."""
        return next((at - moment for at in self.chunk_at if at > moment), None)

    def summary(self, broken_at: float | None = None) -> dict[str, Any]:
        """Ticks by what was done, runs of them, and how long the arm went without a chunk's action.

        Args:
            broken_at: monotonic seconds at which something was broken: ticks are numbered from there.
        """
        runs: list[list[Any]] = []
        for tick in self.ticks:
            if runs and runs[-1][0] == tick.did:
                runs[-1][1] += 1
            else:
                runs.append([tick.did, 1])
        longest = max((count for did, count in runs if did != "played"), default=0)
        gaps = [
            after.at - before.at
            for before, after in zip(self.ticks, self.ticks[1:], strict=False)
            if after.episode == before.episode
        ]
        return {
            "ticks": {did: sum(tick.did == did for tick in self.ticks) for did in ("played", "rested", "stopped")},
            "runs": runs,
            "longest_without_a_chunk_ticks": longest,
            # Within an episode: an arm that no action reaches in time is one that nobody controls.
            "longest_between_ticks_ms": round(max(gaps, default=0.0) * 1e3, 1),
            "rested_since": sum(tick.did == "rested" and tick.at > (broken_at or 0.0) for tick in self.ticks),
            "chunks": len(self.chunk_at),
            "errors": self.errors,
            "resumed_after_s": None if broken_at is None else _rounded(self.resumed_after(broken_at)),
        }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
