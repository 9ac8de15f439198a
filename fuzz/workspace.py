"""A folder for what the targets write: one for each process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def workspace() -> Path:
    """An empty folder, removed at the program's end."""
    folder = Path(tempfile.mkdtemp(prefix="chunkcast-fuzz-")).resolve()
    # libFuzzer ends its process without a word: there, the one that started it removes the folder around this one.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def emptied(name: str) -> Path:
    """A folder of this name in the workspace, with nothing in it."""
    folder = workspace() / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
