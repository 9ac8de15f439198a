"""From where a scene is seen: MetaWorld's own cameras, and views of them that policies are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Quality = Literal["full", "fast"]
"""``full`` has shadows, reflections, sky and smoothed edges, as MuJoCo draws by default; ``fast`` has none of them."""

PUBLISHED_POSITION = (0.75, 0.075, 0.7)
"""Of ``corner2`` in the protocols of published vision-language-action policies on MetaWorld, metres."""


MIN_SIZE, MAX_SIZE = 16, 1024
"""Pixels to a side."""


@dataclass(frozen=True)
class Camera:
    """One camera and the pictures that it makes.

    Attributes:
        view: what its pictures are called: ``observation.images.VIEW``.
        name: MetaWorld's camera.
        size: height and width, pixels.
        quality: how it is drawn.
        position: where the camera is moved to, metres; ``None`` where the scene has it.
        field_of_view: vertical, degrees; ``None`` as the scene has it.
        turned: by 180 degrees: MetaWorld's ``corner2`` hangs upside down.
    """

    view: str
    name: str
    size: int
    quality: Quality = "fast"
    position: tuple[float, float, float] | None = None
    field_of_view: float | None = None
    turned: bool = False


@dataclass(frozen=True)
class _View:
    name: str
    position: tuple[float, float, float] | None = None
    field_of_view: float | None = None
    turned: bool = False


VIEWS: dict[str, _View] = {
    "corner2": _View("corner2", PUBLISHED_POSITION, turned=True),
    "corner2-close": _View("corner2", PUBLISHED_POSITION, 45.0, turned=True),
    "gripper": _View("gripperPOV"),
}
"""Views by what a command line calls them. ``corner2`` is the published protocols' one; ``corner2-close`` looks at its
middle, where a puck has twice the pixels; ``gripper`` is carried by the hand. Any other name is a camera of MetaWorld's
as it stands."""

METAWORLD_CAMERAS = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")


def cameras(views: Sequence[str], size: int, quality: Quality) -> tuple[Camera, ...]:
    """The cameras of ``views``, each a name of ``VIEWS`` or of MetaWorld's own, with its own size after a colon.

    Raises:
        UnknownCamera: there is none of that name, or of that size.
    """
    from chunkcast.simulation.errors import UnknownCamera

    known = tuple(dict.fromkeys((*VIEWS, *METAWORLD_CAMERAS)))
    found = []
    for text in views:
        name, _, own_size = text.partition(":")
        if name not in known or (own_size and not own_size.isdecimal()):
            raise UnknownCamera(f"unknown camera {text!r}; expected NAME or NAME:PIXELS with one of {', '.join(known)}")
        view, pixels = VIEWS.get(name, _View(name)), int(own_size or size)
        if not MIN_SIZE <= pixels <= MAX_SIZE:
            raise UnknownCamera(f"camera {text!r} has {pixels} pixels, expected {MIN_SIZE} to {MAX_SIZE}")
        found.append(Camera(name, view.name, pixels, quality, view.position, view.field_of_view, view.turned))
    return tuple(found)
