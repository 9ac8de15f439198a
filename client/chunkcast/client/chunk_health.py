"""The server's judgement of an episode, as a robot's program sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class ChunkHealth(NamedTuple):
    """How the server judges the episode: is the policy in its element?

    Attributes:
        step: of the observation that was judged, mostly an earlier one than the chunk's.
        signal: the one that stands highest above its threshold or nearest to it, such as ``novelty``; empty where the
            policy has no thresholds.
        score: in the signal's own unit.
        threshold: above it the episode is unhealthy.
        scores: every signal's score and threshold (0: none), by name.
    """

    step: int
    signal: str
    score: float
    threshold: float
    scores: Mapping[str, tuple[float, float]]

    @property
    def unhealthy(self) -> bool:
        """Whether the policy is out of its element: slow down, stop, or ask a person."""
        return 0.0 < self.threshold < self.score
