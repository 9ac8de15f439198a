"""A recorded episode once more, with pictures.

MuJoCo is deterministic: an episode's seed and its executed actions give every tick again. So frames can be made of any
demonstrations, with other cameras whenever wanted, and each tick's state is compared with the recorded one.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.simulation.cameras import Camera
from chunkcast.simulation.metaworld_tasks import make_environment
from chunkcast.simulation.rendering import SceneRenderer
from chunkcast.training.errors import DemonstrationsError

SAME_STATE = 1e-5
"""Metres, by which a replayed state may differ: another processor may round differently."""

FramesOfTick = dict[str, bytes]
"""A tick's compressed pictures, by view."""


@lru_cache(maxsize=1)
def _scene(task: str, cameras: tuple[Camera, ...]) -> tuple[Any, SceneRenderer]:
    """The last task's: episodes come task by task, and a GL context takes half a second to make."""
    environment = make_environment(task)
    return environment, SceneRenderer(environment.model, cameras)


def replayed_frames(
    task: str,
    seed: int,
    states: npt.NDArray[np.float32],
    executed: npt.NDArray[np.float32],
    cameras: tuple[Camera, ...],
    every: int,
    quality: int,
) -> list[FramesOfTick]:
    """The frames of ticks 0, ``every``, 2 ``every`` and so on of an episode.

    Args:
        task, seed: of the episode.
        states: float32 ``[T, S]``, as recorded.
        executed: float32 ``[T, A]``, as recorded.
        cameras: what to render.
        every: ticks between two frames.
        quality: of JPEG, 1 to 100; 0 keeps them as PNG, without loss.

    Raises:
        DemonstrationsError: the episode does not go as it was recorded.
        RenderingUnavailable: nothing can be rendered here.
    """
    environment, renderer = _scene(task, cameras)
    environment.seed(seed)
    observation, _ = environment.reset()
    frames = []
    for tick, action in enumerate(executed):
        difference = float(np.abs(observation - states[tick]).max())
        if not difference <= SAME_STATE:
            raise DemonstrationsError(
                f"{task}, seed {seed} differs at tick {tick} from its recording by {difference:.2g}; render with the "
                "versions of metaworld and mujoco that the manifest names, or collect again"
            )
        if tick % every == 0:
            pictures = renderer.render(environment.data)
            frames.append({view: compressed(picture, quality) for view, picture in pictures.items()})
        observation, *_ = environment.step(action)
    return frames


def compressed(picture: npt.NDArray[np.uint8], quality: int) -> bytes:
    """``picture`` (uint8 ``[H, W, 3]``) as JPEG with full colour resolution, or as PNG where ``quality`` is 0."""
    from PIL import Image

    stream = io.BytesIO()
    if quality:
        Image.fromarray(picture).save(stream, "JPEG", quality=quality, subsampling=0)
    else:
        Image.fromarray(picture).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
