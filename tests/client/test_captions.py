"""What a film says below its pictures."""

from __future__ import annotations

import numpy as np

from chunkcast.client.chunk_health import ChunkHealth
from chunkcast.client.sim.captions import BAD, GOOD, HEIGHT, captioned

FRAME = np.full((64, 320, 3), 50, np.uint8)


def has_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(picture[64:].astype(int) - colour).sum(-1) < 60).any())


def judged(score: float) -> ChunkHealth:
    return ChunkHealth(3, "embedding_novelty", score, 1.0, {})


def test_the_picture_stays_and_the_captions_say_time_health_and_success() -> None:
    plain = captioned(FRAME, title="pick-place-v3", seconds=None, health=None, solved=False)
    assert plain.shape == (64 + HEIGHT, 320, 3)
    assert (plain[:64] == FRAME).all()
    assert plain[64:].max() > 150
    timed = captioned(FRAME, title="pick-place-v3", seconds=0.0123, health=None, solved=False)
    assert (timed != plain).any()
    assert not has_colour(timed, GOOD)
    assert has_colour(captioned(FRAME, title="t", seconds=0.01, health=judged(0.5), solved=False), GOOD)
    assert has_colour(captioned(FRAME, title="t", seconds=0.01, health=judged(1.5), solved=False), BAD)
    assert has_colour(captioned(FRAME, title="t", seconds=0.01, health=None, solved=True), GOOD)
