"""Episodes as MP4, where a GL library can render them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def write_video(file: Path, frames: list[npt.NDArray[np.uint8]], frames_per_second: float) -> None:
    """Write frames uint8 ``[height, width, 3]`` as MP4 (or GIF, by the file's suffix), aside and then renamed."""
    import imageio.v3 as iio

    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}")
    options: dict[str, Any] = {"fps": frames_per_second}
    if file.suffix == ".gif":
        options = {"duration": 1000.0 / frames_per_second, "loop": 0}
    iio.imwrite(aside, np.stack(frames), extension=file.suffix, **options)
    os.replace(aside, file)
