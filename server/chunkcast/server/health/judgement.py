"""From an observation's scores to a judgement: averages over the episode, and thresholds.

Does not know: how scores come about, threads, gRPC.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from chunkcast.v1 import policy_pb2 as pb

SMOOTHING: dict[pb.HealthSignal.ValueType, float] = {
    pb.HEALTH_SIGNAL_RANGE: 0.0,
    pb.HEALTH_SIGNAL_NOVELTY: 0.5,
    pb.HEALTH_SIGNAL_EMBEDDING_NOVELTY: 0.5,
    pb.HEALTH_SIGNAL_DISAGREEMENT: 0.9,
    pb.HEALTH_SIGNAL_DENOISING_LOSS: 0.5,
    pb.HEALTH_SIGNAL_RESPONSE: 0.5,
}
"""Share that the average over an episode keeps of its value at each judgement (exponential moving average)."""

MAX_SCORE = 1e9
"""A score is finite, whatever was observed."""

Scores = dict[pb.HealthSignal.ValueType, float]


@dataclass
class Course:
    """The averages over a stream's current episode."""

    episode_id: str = ""
    averages: Scores = field(default_factory=dict)

    def add(self, episode_id: str, scores: Mapping[pb.HealthSignal.ValueType, float]) -> Scores:
        """Take in a judgement's scores; returns the averages."""
        if episode_id != self.episode_id:
            self.episode_id, self.averages = episode_id, {}
        for signal, score in scores.items():
            kept, before = SMOOTHING[signal], self.averages.get(signal)
            now = min(score, MAX_SCORE) if math.isfinite(score) else MAX_SCORE
            self.averages[signal] = now if before is None else kept * before + (1.0 - kept) * now
        return dict(self.averages)


class Thresholds:
    """Up to where a score is healthy.

    Args:
        health: the specification's; without thresholds, nothing is unhealthy.
    """

    def __init__(self, health: pb.ServingHealth) -> None:
        self._thresholds = {(each.signal, each.task): each.threshold for each in health.thresholds}

    def judge(self, step: int, instruction: str, scores: Mapping[pb.HealthSignal.ValueType, float]) -> pb.ChunkHealth:
        """The judgement of an observation with these averaged scores."""
        judged = pb.ChunkHealth(step=step)
        highest = -1.0
        for signal, score in sorted(scores.items()):
            threshold = self._thresholds.get((signal, instruction)) or self._thresholds.get((signal, ""), 0.0)
            judged.scores.add(signal=signal, score=score, threshold=threshold)
            if threshold and score / threshold > highest:
                highest = score / threshold
                judged.signal, judged.score, judged.threshold = signal, score, threshold
        return judged
