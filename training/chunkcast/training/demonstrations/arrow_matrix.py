"""Arrow's columns of vectors as NumPy matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.training.errors import DemonstrationsError


def matrix(column: Any) -> npt.NDArray[np.float32]:
    """A column of lists of one length as float32 ``[N, D]``; a column of numbers as ``[N, 1]``.

    Raises:
        DemonstrationsError: its lists differ in length, or hold no numbers.
    """
    import pyarrow as pa

    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    nested = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    flat = values.flatten() if nested or pa.types.is_fixed_size_list(values.type) else values
    if values.null_count or flat.null_count or not len(flat) or len(flat) % len(values) or not _is_number(flat.type):
        raise DemonstrationsError(f"a column of {values.type} has no rows of numbers, all of one length")
    if nested and len(set(np.diff(values.offsets.to_numpy()).tolist())) > 1:
        raise DemonstrationsError(f"a column of {values.type} has rows of different lengths")
    # A copy: Arrow's memory is read-only, and torch would warn of it.
    found = np.array(flat.to_numpy(zero_copy_only=False).reshape(len(values), -1), dtype=np.float32)
    if not np.isfinite(found).all():
        raise DemonstrationsError("demonstrations hold numbers that are not finite; leave these episodes out")
    return found


def beside(table: Any, columns: Sequence[str]) -> npt.NDArray[np.float32]:
    """Several columns of a table as one matrix, side by side.

    Raises:
        DemonstrationsError: as ``matrix``.
    """
    parts = [matrix(table[column]) for column in columns]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))
