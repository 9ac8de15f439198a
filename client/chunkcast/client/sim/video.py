"""Episodes as MP4, where a GL library can render them."""

from __future__ import annotations

import ctypes.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.client.errors import ChunkcastError

HINT = (
    "no GL library can render here; install one (Debian and Ubuntu: apt-get install libosmesa6), or leave out --video"
)


class RenderingUnavailable(ChunkcastError):
    """No frame can be rendered on this machine."""


def choose_gl() -> None:
    """Prepare the environment of the worker processes for rendering: mujoco reads MUJOCO_GL when it is imported.

    Raises:
        RenderingUnavailable: no GL library is found.
    """
    assert "mujoco" not in sys.modules
    # Workers start ffmpeg while gRPC's threads run; gRPC would log that it cannot follow through the fork.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    if os.environ.get("MUJOCO_GL"):
        return
    if os.environ.get("DISPLAY"):
        backend = "glfw"
    elif ctypes.util.find_library("OSMesa"):
        backend = "osmesa"
    elif ctypes.util.find_library("EGL") and Path("/dev/dri").exists():
        # Without a device, EGL is found and then fails.
        backend = "egl"
    else:
        raise RenderingUnavailable(HINT)
    os.environ["MUJOCO_GL"] = backend


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
