"""How much of demonstrations is held in memory, and where the rest is mapped from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MAPPED = "mapped-"
DIGITS = 16
"""Of the table's SHA-256, in the copy's name."""


@dataclass(frozen=True)
class Memory:
    """What may be held of demonstrations.

    Attributes:
        most_bytes: columns up to this size are held in memory; larger ones are mapped.
        folder: where mapped copies lie; ``None`` puts them beside the demonstrations.
    """

    most_bytes: float = 4e9
    folder: Path | None = None

    def folder_of(self, demonstrations: Path, sha256: str) -> Path:
        """Where the mapped copy of a table lies."""
        return (self.folder or demonstrations) / f"{MAPPED}{sha256[:DIGITS]}"


def mapped_copies(demonstrations: Path) -> list[Path]:
    """The copies that lie beside a table, of whatever version of it."""
    return [
        folder
        for folder in demonstrations.glob(f"{MAPPED}*")
        if re.fullmatch(f"[0-9a-f]{{{DIGITS}}}", folder.name.removeprefix(MAPPED))
    ]
