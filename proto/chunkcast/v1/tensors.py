"""numpy arrays on the wire: the one codec that client and server share.

A ``Tensor`` is row-major and little-endian; its data must be exactly as long as its dtype and shape say, which is
checked before anything is allocated.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.v1 import policy_pb2 as pb

DTYPES: dict[pb.DataType.ValueType, np.dtype[Any]] = {
    pb.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    pb.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    pb.DATA_TYPE_UINT8: np.dtype("u1"),
    pb.DATA_TYPE_INT32: np.dtype("<i4"),
    pb.DATA_TYPE_INT64: np.dtype("<i8"),
}
_CODES: dict[np.dtype[Any], pb.DataType.ValueType] = {dtype: code for code, dtype in DTYPES.items()}


MAX_AXES = 32
"""Of a tensor; with a batch and a time axis in front it is still an array."""

MAX_BYTES = 2**40
"""Of a tensor without elements, if its axes of none had one: beyond reason, and less than an array may have."""


class TensorError(ValueError):
    """A tensor on the wire contradicts itself, or an array has a dtype that the wire does not carry."""


def encode_tensor(array: npt.NDArray[Any]) -> pb.Tensor:
    """``array`` as a message.

    Raises:
        TensorError: its dtype is not one of ``DTYPES``.
    """
    code = _CODES.get(array.dtype)
    if code is None:
        raise TensorError(f"dtype {array.dtype} is not on the wire; expected one of {', '.join(map(str, _CODES))}")
    return pb.Tensor(dtype=code, shape=array.shape, data=array.tobytes())


def decode_tensor(tensor: pb.Tensor) -> npt.NDArray[Any]:
    """The message's array: read-only, a view of the message's own bytes.

    Raises:
        TensorError: the dtype is unknown, there are too many axes, or the data are not as long as dtype and shape say.
    """
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise TensorError(f"unknown dtype code {int(tensor.dtype)}; expected one of {sorted(DTYPES)}")
    if len(tensor.shape) > MAX_AXES:
        raise TensorError(f"a tensor of {len(tensor.shape)} axes, expected at most {MAX_AXES}")
    shape, data = tuple(tensor.shape), tensor.data
    # Python's integers do not overflow, and no array is made before the lengths agree.
    expected = math.prod(shape) * dtype.itemsize
    widest = math.prod(max(size, 1) for size in shape) * dtype.itemsize
    if expected != len(data) or min(shape, default=0) < 0 or widest > MAX_BYTES:
        raise TensorError(
            f"{len(data)} bytes of data do not make a {dtype} tensor of shape {list(shape)} ({expected} bytes)"
        )
    return np.frombuffer(data, dtype).reshape(shape)
