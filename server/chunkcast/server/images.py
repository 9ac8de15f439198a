"""Cameras' pictures as a policy takes them: decoded and brought to its size, on threads of their own.

What a robot sends is believed to be nothing: formats are named, what a picture may take to decode is bounded before it
is (its bytes, its pixels, and of a JPEG the passes over them), and whatever a decoder says of its content becomes one
refusal.
"""

from __future__ import annotations

import asyncio
import io
import math
import os
import re
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

MAX_BYTES = 1 << 22
"""Of a compressed picture: heads are read in Python."""

MAX_SCANS, MAX_SEGMENTS = 64, 1024
"""Of a JPEG. A progressive one is decoded in a pass over all its pixels for each scan, of which a few bytes suffice.
Marker segments are read one by one; some bytes of an embedded profile look like markers too."""

SCAN = b"\xff\xda"
SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
"""A marker; restarts, which a sensor may put before every block, and stuffed bytes are none."""

FORMATS: dict[pb.ImageFormat.ValueType, str] = {pb.IMAGE_FORMAT_JPEG: "JPEG", pb.IMAGE_FORMAT_PNG: "PNG"}

Pictures = Mapping[str, npt.NDArray[np.uint8]]
"""Of each camera's entry, uint8 ``[height, width, 3]`` of the entry's shape."""


class ImageDecoder:
    """Decodes observations' pictures; shared by all streams. Its threads start with the first picture.

    It has a thread for each processor that the process may use; all but a picture's head is decoded outside Python's
    lock.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="images")

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
    from PIL import Image, UnidentifiedImageError

    name = FORMATS.get(image.format)
    if name is None:
        raise ObservationRejected(
            pb.ERROR_CODE_BAD_IMAGE, f"{key} has the image format code {int(image.format)}, expected JPEG or PNG"
        )
    data = image.data
    if len(data) > MAX_BYTES:
        raise ObservationRejected(
            pb.ERROR_CODE_BAD_IMAGE,
            f"{key} has {len(data)} bytes, expected at most {MAX_BYTES}; send it smaller: the policy sees "
            f"{shape[0]}x{shape[1]}",
        )
    if name == "JPEG":
        _require_few_passes(key, data)
    height, width, _ = shape
    try:
        with Image.open(io.BytesIO(data), formats=(name,)) as opened:
            _require_size(key, (opened.height, opened.width), shape)
            if opened.mode != "RGB":
                raise ObservationRejected(
                    pb.ERROR_CODE_BAD_IMAGE,
                    f"{key} is a picture of mode {opened.mode}, expected RGB of 8 bits; convert it",
                )
            # A JPEG far larger than needed is decoded at a half, a quarter or an eighth of its size.
            opened.draft("RGB", (width, height))
            opened.load()
            rgb = opened if opened.size == (width, height) else _resized(opened, width, height)
            return np.asarray(rgb)
    except (ObservationRejected, MemoryError):
        raise
    except UnidentifiedImageError:
        reason = ""  # its words are of this server's memory
    except Exception as error:  # damaged files raise whatever the decoder stumbles over
        reason = f" ({(str(error).splitlines() or [type(error).__name__])[0][:200]})"
    raise ObservationRejected(
        pb.ERROR_CODE_BAD_IMAGE, f"{key} is no whole {name} picture of {len(data)} bytes{reason}; encode it again"
    )


def raw_picture(key: str, tensor: pb.Tensor, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """An uncompressed picture as it was sent, uint8 ``[height, width, 3]``, read-only.

    Raises:
        ObservationRejected: it is none, too large, or of other proportions.
    """
    sent, data = tuple(tensor.shape[:4]), tensor.data  # each access makes a copy
    if tensor.dtype != pb.DATA_TYPE_UINT8:
        raise ObservationRejected(pb.ERROR_CODE_WRONG_DTYPE, f"{key} is not uint8; send levels from 0 to 255")
    if len(sent) != 3 or sent[2] != 3 or min(sent) < 1 or math.prod(sent) != len(data):
        raise ObservationRejected(
            pb.ERROR_CODE_WRONG_SHAPE,
            f"{key} has shape [{', '.join(map(str, sent))}{', ...' if len(sent) > 3 else ''}] and {len(data)} bytes of "
            f"data, expected [height, width, 3] and as many bytes; {list(shape)} is not resized",
        )
    _require_size(key, (sent[0], sent[1]), shape)
    return np.frombuffer(data, np.uint8).reshape(sent)


def resized(picture: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """``picture``, uint8 ``[height, width, 3]``, brought to ``shape``."""
    from PIL import Image

    return np.asarray(_resized(Image.fromarray(picture), shape[1], shape[0]))


def _resized(picture: Any, width: int, height: int) -> Any:
    from PIL import Image

    filtering = Image.Resampling.BOX if picture.width > width else Image.Resampling.BILINEAR
    return picture.resize((width, height), filtering)


def _require_few_passes(key: str, data: bytes) -> None:
    scans, segments = data.count(SCAN), len(SEGMENT.findall(data))
    if scans > MAX_SCANS or segments > MAX_SEGMENTS:
        raise ObservationRejected(
            pb.ERROR_CODE_BAD_IMAGE,
            f"{key} is a JPEG of {scans} scans and {segments} segments, expected at most {MAX_SCANS} and "
            f"{MAX_SEGMENTS}; encode it again",
        )


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
