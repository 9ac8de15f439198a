"""Which files a program opens, by Python's own audit events."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

_watched: list[tuple[Path, list[Path]]] = []


@contextmanager
def opened_paths(root: Path) -> Iterator[list[Path]]:
    """The paths below ``root`` that any thread opens meanwhile, links as they are named."""
    _listen()
    opened: list[Path] = []
    _watched.append((root, opened))
    try:
        yield opened
    finally:
        _watched.remove((root, opened))


@cache
def _listen() -> None:
    """A hook stays for the process's life: there is one."""
    sys.addaudithook(_note)


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _watched or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    path = Path(os.path.abspath(os.fsdecode(arguments[0])))
    for root, opened in _watched:
        if path.is_relative_to(root):
            opened.append(path)
