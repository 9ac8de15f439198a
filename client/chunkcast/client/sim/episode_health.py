"""How the server judged an episode while it was played."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chunkcast.client import ActionChunk


class EpisodeHealth(NamedTuple):
    """What the judgements of an episode amount to.

    Attributes:
        judged: chunks that were judged by a threshold.
        highest: each signal's highest score.
        flagged_at: control tick at which the first chunk arrived that said unhealthy, or ``None``.
        flagged_by: the signal that said so; empty if none did.
    """

    judged: int
    highest: dict[str, float]
    flagged_at: int | None = None
    flagged_by: str = ""


def episode_health(chunks: Sequence[ActionChunk]) -> EpisodeHealth:
    """The health of the episode of these chunks, in their order. The robot learns of a judgement with a later chunk."""
    judgements = {chunk.health.step: chunk.health for chunk in chunks if chunk.health}
    highest: dict[str, float] = {}
    for health in judgements.values():
        for signal, (score, _) in health.scores.items():
            highest[signal] = max(score, highest.get(signal, score))
    judged = sum(health.threshold > 0.0 for health in judgements.values())
    first = next((chunk for chunk in chunks if chunk.health and chunk.health.unhealthy), None)
    if first is None or first.health is None:
        return EpisodeHealth(judged, highest)
    return EpisodeHealth(judged, highest, first.step, first.health.signal)
