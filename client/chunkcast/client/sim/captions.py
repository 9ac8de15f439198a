"""What a film says below its pictures: the chunk's time and how the server judges the episode."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from chunkcast.client.chunk_health import ChunkHealth

HEIGHT = 48
"""With 320 pixels above it a multiple of 16, as video encoders want it."""
INK, GOOD, BAD = (230, 230, 230), (110, 200, 120), (240, 90, 70)
SIZE = 12


def captioned(
    frame: npt.NDArray[np.uint8], *, title: str, seconds: float | None, health: ChunkHealth | None, solved: bool
) -> npt.NDArray[np.uint8]:
    """``frame`` (uint8 ``[H, W, 3]``) with two lines below it, ``[H + HEIGHT, W, 3]``.

    Args:
        title: what is played.
        seconds: the last chunk's, as the robot saw it; ``None`` before the first.
        health: the last judgement.
        solved: the episode is.
    """
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (frame.shape[1], frame.shape[0] + HEIGHT))
    picture.paste(Image.fromarray(frame))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(SIZE)
    first, second, left = frame.shape[0] + 4, frame.shape[0] + 21, 6
    draw.text((left, first), title, INK, font)
    if solved:
        draw.text((frame.shape[1] - left, first), "solved", GOOD, font, anchor="ra")
    draw.text((left, second), "no chunk yet" if seconds is None else f"chunk {seconds * 1e3:.1f} ms", INK, font)
    if health is not None and health.threshold > 0.0:
        said = f"{health.signal.replace('_', ' ')} {health.score / health.threshold:.2f} of its threshold"
        draw.text((frame.shape[1] - left, second), said, BAD if health.unhealthy else GOOD, font, anchor="ra")
    return np.asarray(picture)
