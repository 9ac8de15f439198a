"""The tensor codec returns what went in, and refuses what contradicts itself before it allocates anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.tensors import DTYPES, TensorError, decode_tensor, encode_tensor

arrays = st.sampled_from(list(DTYPES.values())).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


@given(arrays)
def test_round_trip(array: npt.NDArray[Any]) -> None:
    decoded = decode_tensor(encode_tensor(array))
    assert decoded.dtype == array.dtype
    assert decoded.shape == array.shape
    assert decoded.tobytes() == array.tobytes()


def test_non_contiguous_arrays_are_sent_in_row_major_order() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2].T
    np.testing.assert_array_equal(decode_tensor(encode_tensor(array)), array)


@given(dtype=st.integers(-1, 9), shape=st.lists(st.integers(-(2**40), 2**40), max_size=4), data=st.binary(max_size=64))
def test_any_message_is_decoded_exactly_or_refused(dtype: int, shape: list[int], data: bytes) -> None:
    tensor = pb.Tensor(dtype=dtype, shape=shape, data=data)  # type: ignore[arg-type]
    try:
        decoded = decode_tensor(tensor)
    except TensorError:
        return
    assert decoded.nbytes == len(data)
    assert list(decoded.shape) == shape


@pytest.mark.parametrize("dtype", [np.float16, np.complex64, np.bool_, np.dtype(">f4"), object])
def test_other_dtypes_are_refused_by_name(dtype: Any) -> None:
    with pytest.raises(TensorError, match="is not on the wire; expected one of float32"):
        encode_tensor(np.zeros(2, dtype))
