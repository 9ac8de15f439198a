"""Which camera frames are made, as the flags that chunkcast-render and chunkcast-collect share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chunkcast.simulation.cameras import Camera, Quality, cameras
from chunkcast.training.errors import TrainingError

FramePreset = Literal["none", "fast", "published"]


@dataclass(frozen=True)
class _Preset:
    cameras: tuple[str, ...]
    image_size: int
    rendering: Quality


PRESETS: dict[FramePreset, _Preset] = {
    "fast": _Preset(("corner2-close", "gripper:64", "topview:64"), 128, "fast"),
    "published": _Preset(("corner2",), 256, "full"),
}


@dataclass(frozen=True)
class FrameFlags:
    """Which frames to make."""

    frames: FramePreset = "none"
    """Which camera frames to make too: none, fast (seen from near, drawn quickly), or published (as published policies
    on MetaWorld see it: camera corner2, moved and turned, with shadows)."""
    cameras: tuple[str, ...] = ()
    """Other views than the preset's: corner2, corner2-close (its middle, magnified), gripper (carried by the hand), or
    one of MetaWorld's own cameras."""
    image_size: int = 0
    """Height and width of a frame, pixels; 0 takes the preset's."""
    rendering: Quality | None = None
    """full draws as MuJoCo does; fast leaves out shadows, reflections, sky and smoothing. By default the preset's."""
    every: int = 1
    """Control ticks between two frames."""
    image_quality: int = 95
    """Of the stored JPEGs, 1 to 100; 0 stores PNG, without loss."""

    def __post_init__(self) -> None:
        """Refuse what cannot be rendered."""
        if self.every < 1:
            raise TrainingError(f"--every must be at least 1, got {self.every}")
        if not 0 <= self.image_quality <= 100:
            raise TrainingError(f"--image-quality must lie in [0, 100], got {self.image_quality}")
        if len(set(self.cameras)) < len(self.cameras):
            raise TrainingError(f"--cameras names a view twice: {' '.join(self.cameras)}")
        if self.frames == "none" and (self.cameras or self.image_size or self.rendering):
            raise TrainingError("--cameras, --image-size and --rendering go with --frames fast or --frames published")


def frame_cameras(flags: FrameFlags) -> tuple[Camera, ...]:
    """The cameras that the flags name; none where no frames are made.

    Raises:
        UnknownCamera: one is unknown.
    """
    preset = PRESETS.get(flags.frames)
    if preset is None:
        return ()
    size, rendering = flags.image_size or preset.image_size, flags.rendering or preset.rendering
    return cameras(flags.cameras or preset.cameras, size, rendering)
