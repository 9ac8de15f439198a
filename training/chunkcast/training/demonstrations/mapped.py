"""Tables that do not fit into memory: their columns are copied once into shards that are mapped into it.

Parquet is compressed and must be decoded to be read, a row group at a time; training takes rows from everywhere. So the
columns lie beside it once more, as they are in memory, in safetensors files, which are mapped as they are::

    DIR/mapped-<the table's SHA-256>/
      shard-00000.safetensors   float32 [R, D] for each column

A shard is written aside and then renamed: copying that was interrupted goes on where it stood.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from chunkcast.training.demonstrations.arrow_matrix import beside
from chunkcast.training.demonstrations.rows import Rows
from chunkcast.training.errors import DemonstrationsError

SHARD_ROWS = 2**18
"""50 MB of MetaWorld's states and actions: what copying holds in memory."""


def mapped_columns(files: Sequence[Path], columns: Mapping[str, Sequence[str]], folder: Path) -> dict[str, Rows]:
    """Columns of Parquet files, mapped; copied first where they are not yet.

    Args:
        files: in order; each begins a shard.
        columns: name to the Parquet columns that it is made of, side by side.
        folder: of the shards; its name must stand for the files' contents.

    Raises:
        DemonstrationsError: there is no room for the copy, or no right to write it.
    """
    import pyarrow.parquet as pq
    from safetensors import SafetensorError

    shards: list[Path] = []
    parts = [(file, pq.read_metadata(file).num_rows) for file in files]
    total = sum(-(-rows // SHARD_ROWS) for _, rows in parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _progress(total) as advance:
            for file, rows in parts:
                count = -(-rows // SHARD_ROWS)
                wanted = [folder / f"shard-{len(shards) + number:05d}.safetensors" for number in range(count)]
                shards.extend(wanted)
                _copy(file, columns, wanted)
                advance(count)
        opened = [_map(shard) for shard in shards]
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DemonstrationsError(
            f"the columns cannot be copied to {folder} ({reason}); make room, or name another place with "
            "--mapped-folder"
        ) from None
    if len({tuple(tensors[name].shape[1] for name in columns) for tensors in opened}) > 1:
        raise DemonstrationsError(
            f"the vectors of {', '.join(columns)} in {files[0].parent} are not all as long; write the table again"
        )
    return {name: Rows([tensors[name] for tensors in opened], mapped=True) for name in columns}


def _progress(total: int) -> Any:
    """Nothing to see where everything is there already."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import Progress

    @contextmanager
    def shown() -> Any:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("copying columns", total=total)
            yield lambda count: progress.update(task, advance=count)

    return shown()


def _copy(file: Path, columns: Mapping[str, Sequence[str]], shards: Sequence[Path]) -> None:
    """Write those of ``shards`` that are missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.torch import save_file

    if all(shard.is_file() for shard in shards):
        return
    opened = pq.ParquetFile(file)
    held: list[Any] = []
    batches = opened.iter_batches(SHARD_ROWS, columns=[part for parts in columns.values() for part in parts])
    pending, rows = iter(shards), 0

    def flush(table: Any) -> None:
        shard = next(pending)
        if shard.is_file():
            return
        tensors = {name: torch.from_numpy(beside(table, parts)) for name, parts in columns.items()}
        aside = shard.with_name(f".{shard.name}.writing-{os.getpid()}")
        try:
            save_file(tensors, aside)
            os.replace(aside, shard)
        finally:
            aside.unlink(missing_ok=True)

    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        while rows >= SHARD_ROWS:
            table = pa.Table.from_batches(held)
            flush(table.slice(0, SHARD_ROWS))
            rest = table.slice(SHARD_ROWS)
            held, rows = rest.to_batches(), rest.num_rows
    if rows:
        flush(pa.Table.from_batches(held))


def _map(file: Path) -> dict[str, torch.Tensor]:
    """A shard's tensors, which the kernel reads as they are asked for."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
