"""The cameras that a policy's specification names, and how a specification says of a camera what it is."""

from __future__ import annotations

from chunkcast.simulation.cameras import Camera
from chunkcast.simulation.errors import UnknownCamera
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import camera_entries

IMAGE_PREFIX = "observation.images."
"""Of an observation entry that is a camera's; its view follows."""


def camera_message(camera: Camera) -> pb.CameraSpec:
    """``camera`` as a specification has it."""
    return pb.CameraSpec(
        name=camera.name,
        position=camera.position or (),
        field_of_view=camera.field_of_view or 0.0,
        turned=camera.turned,
        rendering=camera.quality,
    )


def policy_cameras(spec: pb.PolicySpec) -> tuple[Camera, ...]:
    """The cameras of ``spec``, their views called as its observation entries.

    Raises:
        UnknownCamera: an entry's pictures cannot be made in a simulation.
    """
    cameras = []
    for entry in camera_entries(spec):
        camera, shape = entry.camera, list(entry.shape)
        if shape[0] != shape[1] or camera.rendering not in ("full", "fast") or len(camera.position) not in (0, 3):
            raise UnknownCamera(
                f"{spec.name}: {entry.key} is {shape}, {camera.rendering!r}, at {list(camera.position)}; expected a "
                "square, full or fast, and no position or three numbers"
            )
        position = (camera.position[0], camera.position[1], camera.position[2]) if camera.position else None
        cameras.append(
            Camera(
                entry.key,
                camera.name,
                shape[0],
                "full" if camera.rendering == "full" else "fast",
                position,
                camera.field_of_view or None,
                camera.turned,
            )
        )
    return tuple(cameras)
