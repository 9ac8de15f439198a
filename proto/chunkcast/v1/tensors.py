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
        TensorError: the dtype is unknown, or the data are not as long as dtype and shape say.
    """
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise TensorError(f"unknown dtype code {int(tensor.dtype)}; expected one of {sorted(DTYPES)}")
    shape, data = tuple(tensor.shape), tensor.data
    # Python's integers do not overflow, and no array is made before the lengths agree.
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(data) or (shape and min(shape) < 0):
        raise TensorError(
            f"{len(data)} bytes of data do not make a {dtype} tensor of shape {list(shape)} ({expected} bytes)"
        )
    return np.frombuffer(data, dtype).reshape(shape)
