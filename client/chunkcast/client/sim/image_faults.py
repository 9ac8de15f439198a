"""What may be wrong with a camera's picture, as functions of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[Any]
"""uint8 ``[height, width, 3]``."""

GREY = 90


def occluded(picture: Picture, share: float, at: npt.NDArray[np.float64]) -> Picture:
    """``picture`` with a grey square over ``share`` of it; ``at`` (``[2]``, 0 to 1) says where it lies."""
    height, width = picture.shape[:2]
    side = round(float(np.sqrt(share * height * width)))
    top, left = (int(place * max(0, size - side)) for place, size in zip(at, (height, width), strict=True))
    picture[top : top + side, left : left + side] = GREY
    return picture


def darkened(picture: Picture, share: float) -> Picture:
    """``picture`` with ``share`` of its light; above 1 it is overexposed."""
    lit: Picture = np.clip(picture.astype(np.float32) * share, 0.0, 255.0).astype(np.uint8)
    return lit


def blurred(picture: Picture, radius: float) -> Picture:
    """``picture`` out of focus: a Gaussian of so many pixels' standard deviation."""
    from scipy.ndimage import gaussian_filter

    smoothed: Picture = gaussian_filter(picture.astype(np.float32), (radius, radius, 0.0)).astype(np.uint8)
    return smoothed
