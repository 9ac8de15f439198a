"""Cameras' pictures as a policy takes them: decoded and brought to its size, on threads of their own.

What a robot sends is believed to be nothing: formats are named, sizes are read from a picture's head and bounded before
anything is decoded, and whatever a decoder says of its content becomes one refusal.
"""

from __future__ import annotations

import asyncio
import io
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.server.errors import ObservationRejected
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import camera_entries, same_proportions

MAX_PIXELS = 2048 * 2048
"""Of a picture that is decoded: 12.6 MB. A few hundred bytes can claim to be a thousand times that."""

FORMATS: dict[pb.ImageFormat.ValueType, str] = {pb.IMAGE_FORMAT_JPEG: "JPEG", pb.IMAGE_FORMAT_PNG: "PNG"}

Pictures = Mapping[str, npt.NDArray[np.uint8]]
"""Of each camera's entry, uint8 ``[height, width, 3]`` of the entry's shape."""


class ImageDecoder:
    """Decodes observations' pictures; shared by all streams. Its threads start with the first picture.

    Args:
        threads: at once; decoding leaves Python's lock.
    """

    def __init__(self, threads: int = os.cpu_count() or 1) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="images")

    async def decode(self, spec: pb.PolicySpec, observation: pb.Observation) -> Pictures:
        """The pictures of every camera's entry that ``observation`` has; those that it has not are missing.

        Raises:
            ObservationRejected: one is damaged, too large, or of other proportions.
        """
        entries = camera_entries(spec)
        if not entries:
            return {}
        loop = asyncio.get_running_loop()
        pictures: dict[str, npt.NDArray[np.uint8]] = {}
        waiting = {}
        for entry in entries:
            shape = tuple(entry.shape)
            if entry.key in observation.images:
                image = observation.images[entry.key]
                waiting[entry.key] = loop.run_in_executor(self._pool, decoded, entry.key, image, shape)
            elif entry.key in observation.tensors:
                tensor = observation.tensors[entry.key]
                raw = raw_picture(entry.key, tensor, shape)
                if raw.shape == shape:
                    pictures[entry.key] = raw
                else:
                    waiting[entry.key] = loop.run_in_executor(self._pool, resized, raw, shape)
        if waiting:
            answers = await asyncio.gather(*waiting.values(), return_exceptions=True)
            for key, answer in zip(waiting, answers, strict=True):
                if isinstance(answer, BaseException):
                    raise answer
                pictures[key] = answer
        return pictures

    def close(self) -> None:
        """End the threads after what they do."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def decoded(key: str, image: pb.Image, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """A compressed picture, uint8 of ``shape``, ``[height, width, 3]``.

    Raises:
        ObservationRejected: it is damaged, too large, or of other proportions.
    """
    from PIL import Image

    name = FORMATS.get(image.format)
    if name is None:
        raise ObservationRejected(
            pb.ERROR_CODE_BAD_IMAGE, f"{key} has the image format code {int(image.format)}, expected JPEG or PNG"
        )
    height, width, _ = shape
    try:
        with Image.open(io.BytesIO(image.data), formats=(name,)) as opened:
            _require_size(key, (opened.height, opened.width), shape)
            # A JPEG far larger than needed is decoded at a half, a quarter or an eighth of its size.
            opened.draft("RGB", (width, height))
            rgb = opened.convert("RGB")
    except ObservationRejected:
        raise
    except Exception as error:  # damaged files raise whatever the decoder stumbles over
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ObservationRejected(
            pb.ERROR_CODE_BAD_IMAGE,
            f"{key} is no whole {name} picture of {len(image.data)} bytes ({reason}); encode it again",
        ) from None
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.BOX if rgb.width > width else Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def raw_picture(key: str, tensor: pb.Tensor, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """An uncompressed picture as it was sent, uint8 ``[height, width, 3]``, read-only.

    Raises:
        ObservationRejected: it is none, too large, or of other proportions.
    """
    sent = list(tensor.shape)
    if tensor.dtype != pb.DATA_TYPE_UINT8:
        raise ObservationRejected(pb.ERROR_CODE_WRONG_DTYPE, f"{key} is not uint8; send levels from 0 to 255")
    if len(sent) != 3 or sent[2] != 3 or min(sent) < 1 or math.prod(sent) != len(tensor.data):
        raise ObservationRejected(
            pb.ERROR_CODE_WRONG_SHAPE,
            f"{key} has shape {sent[:8]} and {len(tensor.data)} bytes of data, expected [height, width, 3] and as many "
            f"bytes; {list(shape)} is not resized",
        )
    _require_size(key, (sent[0], sent[1]), shape)
    return np.frombuffer(tensor.data, np.uint8).reshape(sent)


def resized(picture: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """``picture``, uint8 ``[height, width, 3]``, brought to ``shape``."""
    from PIL import Image

    filtering = Image.Resampling.BOX if picture.shape[1] > shape[1] else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(picture).resize((shape[1], shape[0]), filtering))


def _require_size(key: str, size: tuple[int, int], shape: tuple[int, ...]) -> None:
    """A picture's height and width are bounded, and in the entry's proportions."""
    if size[0] * size[1] > MAX_PIXELS:
        raise ObservationRejected(
            pb.ERROR_CODE_BAD_IMAGE,
            f"{key} has {size[0]}x{size[1]} pixels, expected at most {MAX_PIXELS} in all; send it smaller: the policy "
            f"sees {shape[0]}x{shape[1]}",
        )
    if not same_proportions(size, (shape[0], shape[1])):
        raise ObservationRejected(
            pb.ERROR_CODE_WRONG_SHAPE,
            f"{key} has {size[0]}x{size[1]} pixels (height x width), expected the proportions of "
            f"{shape[0]}x{shape[1]}; crop it as the policy's camera sees",
        )
