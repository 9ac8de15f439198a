"""Decoded camera frames, as windows take them."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from chunkcast.training.errors import DemonstrationsError
from chunkcast.training.frames.frame_files import CompressedFrames

DECODING_THREADS = 8
"""Decoding leaves Python's lock."""


class FrameTensors:
    """The frames of some views: held decoded where there is room, decoded batch by batch where there is none.

    Args:
        compressed: as read.
        views: which to hold, in the policy's order.
        rows: of the demonstrations' table.
        device: where to hold them.
        most_bytes: room for decoded frames.

    Raises:
        DemonstrationsError: a view is not among the frames.

    Attributes:
        sizes: height and width of each view's frames, pixels.
        frame_of_row: int64 ``[N]``, the frame of each row of the table; -1 where it has none.
    """

    def __init__(
        self, compressed: CompressedFrames, views: tuple[str, ...], rows: int, device: torch.device, most_bytes: int
    ) -> None:
        cameras = {camera.view: camera for camera in compressed.settings.cameras}
        if missing := [view for view in views if view not in cameras]:
            raise DemonstrationsError(
                f"the frames are of {', '.join(cameras)}, not of {', '.join(missing)}; render these too with "
                "chunkcast-render --overwrite"
            )
        self.sizes = tuple(cameras[view].size for view in views)
        self.frame_of_row = np.full(rows, -1, np.int64)
        self.frame_of_row[compressed.rows] = np.arange(len(compressed.rows))
        self._device = device
        self._pool = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="frames")
        self._compressed = [compressed.pictures[view] for view in views]
        count = len(compressed.rows)
        fits = count * 3 * sum(size**2 for size in self.sizes) <= most_bytes
        self._decoded = (
            [self._decode(view, np.arange(count)).to(device) for view in range(len(views))] if fits else None
        )

    def take(self, frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Of each view, uint8 ``[*frames, H, W, 3]``.

        Args:
            frames: int64, any shape.
        """
        if self._decoded is not None:
            return tuple(view[frames] for view in self._decoded)
        flat = frames.flatten().cpu().numpy()
        return tuple(
            self._decode(view, flat).view(*frames.shape, size, size, 3).to(self._device)
            for view, size in enumerate(self.sizes)
        )

    def _decode(self, view: int, frames: npt.NDArray[np.int64]) -> torch.Tensor:
        """uint8 ``[M, H, W, 3]``."""
        size = self.sizes[view]
        decoded = torch.empty((len(frames), size, size, 3), dtype=torch.uint8)
        into, pictures = decoded.numpy(), self._compressed[view]

        def decode(part: npt.NDArray[np.int64]) -> None:
            from PIL import Image

            for place in part:
                into[place] = np.asarray(Image.open(io.BytesIO(pictures[int(frames[place])].as_py())))

        parts = np.array_split(np.arange(len(frames)), DECODING_THREADS)
        list(self._pool.map(decode, parts))
        return decoded
