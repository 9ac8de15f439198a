"""Columns of a table's Parquet files: in memory where they fit, mapped from a copy where they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from chunkcast.training.demonstrations.arrow_matrix import beside, matrix
from chunkcast.training.demonstrations.mapped import mapped_columns
from chunkcast.training.demonstrations.memory import Memory
from chunkcast.training.demonstrations.rows import Rows

BYTES_OF_A_NUMBER = 4


def read_columns(
    files: Sequence[Path], columns: Mapping[str, Sequence[str]], mapped_folder: Path, memory: Memory
) -> dict[str, Rows]:
    """Columns of vectors, over all ``files`` in order.

    Args:
        columns: name to the Parquet columns that it is made of, side by side.
        mapped_folder: of the copy, if one is made.
        memory: what may be held.

    Raises:
        DemonstrationsError: a column holds no vectors of one length, or the copy cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = [part for parts in columns.values() for part in parts]
    first = next(pq.ParquetFile(files[0]).iter_batches(1, columns=wanted))
    width = sum(matrix(first[part]).shape[1] for part in wanted)
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    if rows * width * BYTES_OF_A_NUMBER > memory.most_bytes:
        return mapped_columns(files, columns, mapped_folder)
    table = pa.concat_tables(pq.read_table(file, columns=wanted) for file in files)
    return {name: Rows.of(beside(table, parts)) for name, parts in columns.items()}
