"""Pictures of a MuJoCo scene, through whichever GL library is there."""

from __future__ import annotations

import ctypes.util
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.simulation.cameras import Camera
from chunkcast.simulation.errors import RenderingUnavailable

HINT = "no GL library can render here; install one (Debian and Ubuntu: apt-get install libosmesa6)"


def choose_gl(*, software: bool = False) -> None:
    """Say by which library this process and those that it starts render: mujoco reads MUJOCO_GL when it is imported.

    Args:
        software: leave a display alone, which many processes at once would slow down.

    Raises:
        RenderingUnavailable: no GL library is found.
    """
    if os.environ.get("MUJOCO_GL"):
        return
    assert "mujoco" not in sys.modules, "mujoco was imported before its GL library was chosen"
    if os.environ.get("DISPLAY") and not software:
        backend = "glfw"
    elif ctypes.util.find_library("EGL") and (Path("/dev/dri").exists() or Path("/dev/nvidiactl").exists()):
        # Without a device, EGL is found and then fails.
        backend = "egl"
    elif ctypes.util.find_library("OSMesa"):
        backend = "osmesa"
    else:
        raise RenderingUnavailable(HINT)
    os.environ["MUJOCO_GL"] = backend
    # Rendering processes run side by side: each more than one thread would take the others' processors.
    os.environ.setdefault("LP_NUM_THREADS", "1")


class SceneRenderer:
    """Pictures of one scene, from its cameras.

    Args:
        model: MuJoCo's.
        cameras: of which pictures will be asked.

    Raises:
        RenderingUnavailable: the GL library that was chosen does not work, or the scene has no such camera.
    """

    def __init__(self, model: Any, cameras: tuple[Camera, ...]) -> None:
        self._model, self._cameras = model, cameras
        self._renderers: dict[tuple[int, str], Any] = {}
        self._displacement = np.zeros(3)
        for camera in cameras:
            _camera_index(model, camera)
            kind = (camera.size, camera.quality)
            if kind not in self._renderers:
                self._renderers[kind] = _renderer(model, camera)
        weakref.finalize(self, _free, self._renderers)

    def render(self, data: Any) -> dict[str, npt.NDArray[np.uint8]]:
        """A picture of each camera, uint8 ``[size, size, 3]``, by its view.

        Args:
            data: MuJoCo's, of the same model.
        """
        return {camera.view: self.picture(camera, data) for camera in self._cameras}

    def picture(self, camera: Camera, data: Any) -> npt.NDArray[np.uint8]:
        """One camera's picture, uint8 ``[size, size, 3]``."""
        import mujoco

        model, index = self._model, _camera_index(self._model, camera)
        # One that tracks a body keeps its place relative to it apart from the others'.
        tracks = model.cam_mode[index] == mujoco.mjtCamLight.mjCAMLIGHT_TRACK
        places = model.cam_pos0 if tracks else model.cam_pos
        place, field_of_view = places[index].copy(), float(model.cam_fovy[index])
        renderer = self._renderers[camera.size, camera.quality]
        # For this picture alone: another view may be of the same camera.
        places[index] = (place if camera.position is None else camera.position) + self._displacement
        model.cam_fovy[index] = field_of_view if camera.field_of_view is None else camera.field_of_view
        try:
            mujoco.mj_camlight(model, data)  # where the camera is in the world is computed anew
            renderer.update_scene(data, camera=camera.name)
            picture = renderer.render()
        finally:
            places[index], model.cam_fovy[index] = place, field_of_view
        return np.ascontiguousarray(picture[::-1, ::-1] if camera.turned else picture)

    def move(self, displacement: npt.NDArray[np.float64]) -> None:
        """Put every camera elsewhere than it belongs by ``displacement`` (``[3]``, metres); zeros put it back."""
        self._displacement = displacement


def _free(renderers: dict[tuple[int, str], Any]) -> None:
    """Give back what the GL library holds for each of ``renderers``.

    In its own context: MuJoCo's ``close`` would delete the objects of the context that happens to be current, and
    another renderer would go on drawing garbage.
    """
    for renderer in renderers.values():
        renderer._gl_context.make_current()
        renderer._mjr_context.free()
        renderer._mjr_context = None
        renderer.close()
    renderers.clear()


def _camera_index(model: Any, camera: Camera) -> int:
    try:
        return int(model.camera(camera.name).id)
    except KeyError:
        raise RenderingUnavailable(f"the scene has no camera {camera.name!r}") from None


def _renderer(model: Any, camera: Camera) -> Any:
    import mujoco

    smoothing = model.vis.quality.offsamples
    # MuJoCo draws no picture larger than this.
    model.vis.global_.offwidth = max(model.vis.global_.offwidth, camera.size)
    model.vis.global_.offheight = max(model.vis.global_.offheight, camera.size)
    fast = camera.quality == "fast"
    try:
        model.vis.quality.offsamples = 0 if fast else smoothing  # read when the GL context is made
        renderer = mujoco.Renderer(model, camera.size, camera.size)
    except Exception as error:  # whatever the GL library raises
        raise RenderingUnavailable(f"{HINT} ({type(error).__name__}: {str(error).splitlines()[0]})") from None
    finally:
        model.vis.quality.offsamples = smoothing
    if fast:
        for flag in (
            mujoco.mjtRndFlag.mjRND_SHADOW,
            mujoco.mjtRndFlag.mjRND_REFLECTION,
            mujoco.mjtRndFlag.mjRND_SKYBOX,
        ):
            renderer.scene.flags[flag] = 0
    return renderer
