"""The rows of any trainer's log: a CSV with a header, or one JSON object a line."""

from __future__ import annotations

import codecs
import csv
import io
import json
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from chunkcast.training.errors import TrainingError

MAX_SHOWN = 120
"""Characters of column names in a message."""

FORM = "CSV or JSONL with epoch, train_loss[, val_loss]"


class Row(NamedTuple):
    """One row of a log.

    Attributes:
        where: its file and line, for messages.
        cells: its values by column; None where a cell is empty.
        ended: whether its line has an end.
    """

    where: str
    cells: dict[str, Any]
    ended: bool = True


def read_rows(file: Path, max_bytes: int) -> list[Row]:
    """Read a log; a last line that was torn while it was written is left out.

    Args:
        file: ``.csv``, or else JSON lines.
        max_bytes: a larger file is not read.

    Raises:
        TrainingError: the file is missing, too large or not in this form.
    """
    if not file.is_file():
        raise TrainingError(f"{file} is missing; expected a history: {FORM}")
    if (size := file.stat().st_size) > max_bytes:
        raise TrainingError(f"{file} has {size} bytes, expected at most {max_bytes}: one row an epoch")
    try:
        # Incremental, as the last line may be torn within a character.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(file.read_bytes())
    except UnicodeDecodeError:
        raise TrainingError(f"{file} is not text in UTF-8; expected {FORM}") from None
    return _csv_rows(file, text) if file.suffix.lower() == ".csv" else list(_json_rows(file, text))


def _csv_rows(file: Path, text: str) -> list[Row]:
    # strict: a quote that does not close would swallow the rest of the table.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise TrainingError(f"{file}, line {reader.line_num} is not CSV ({error}); expected {FORM}") from None
    (_, header), *rows = [line for line in lines if any(line[1])] or [(1, [])]
    if rows and len(rows[-1][1]) < len(header) and not text.endswith(("\n", "\r")):
        rows.pop()  # torn: its empty cells are not NaN
    for number, cells in rows:
        if len(cells) > len(header):
            raise TrainingError(
                f"{file}, line {number} has {len(cells)} cells, expected at most {len(header)}: "
                f"the header is {shown_names(header)}"
            )
    return [
        Row(f"{file}, line {number}", {name: cell or None for name, cell in zip(header, cells, strict=False)})
        for number, cells in rows
    ]


def _json_rows(file: Path, text: str) -> Iterable[Row]:
    lines = io.StringIO(text, newline=None).readlines()  # str.splitlines also splits within a JSON string
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where, ended = f"{file}, line {number}", line.endswith("\n")
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError):
            if not ended:
                return  # torn
            cells = None
        if not isinstance(cells, dict):
            raise TrainingError(f"{where} is {line[:40]!r}, expected a JSON object with epoch, train_loss[, val_loss]")
        yield Row(where, cells, ended)


def number(where: str, name: str, value: Any, kinds: tuple[type, ...] = (int, float, str)) -> float:
    """``value`` as a number.

    Args:
        where, name: its row and column, for messages.
        value: as it was read.
        kinds: what it may have been written as.

    Raises:
        TrainingError: it is not a number.
    """
    try:
        if type(value) not in kinds:  # isinstance takes a bool for an int
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        # reprlib, as a nested value may be too deep for repr.
        raise TrainingError(f"{where}: {name} is {reprlib.repr(value)}, expected a number") from None


def epoch_number(where: str, value: Any, kinds: tuple[type, ...] = (int, float, str)) -> int:
    """``value`` as the number of an epoch.

    Args:
        where, value, kinds: as for ``number``.

    Raises:
        TrainingError: it is not a non-negative whole number.
    """
    epoch = number(where, "epoch", value, kinds)
    if not epoch.is_integer() or not 0 <= epoch < 2**53:
        raise TrainingError(f"{where}: epoch is {reprlib.repr(value)}, expected a non-negative whole number")
    return int(epoch)


def shown_names(names: Iterable[str]) -> str:
    """Names of columns for a message: in one line, and not all of thousands."""
    joined = ", ".join(names)
    return repr(joined if len(joined) <= MAX_SHOWN else joined[:MAX_SHOWN] + "...") if joined else "empty"
