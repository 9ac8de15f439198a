"""Files that are whole or not there: written aside, then renamed over what they replace."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any


def write_text(file: Path, text: str) -> None:
    """Write ``text`` as UTF-8; half a surrogate pair, which no encoding takes, becomes a question mark."""
    write_bytes(file, text.encode("utf-8", errors="replace"))


def write_bytes(file: Path, content: bytes) -> None:
    """Write ``content``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.writing")
    aside.write_bytes(content)
    os.replace(aside, file)


def write_json(file: Path, facts: dict[str, Any]) -> None:
    """Write strict JSON: null for NaN and infinity, which JSON does not have."""
    write_text(file, json.dumps(strict(facts), indent=2, allow_nan=False) + "\n")


def strict(value: Any) -> Any:
    """``value`` with None for what is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: strict(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [strict(each) for each in value]
    return value


def replace_folder(aside: Path, folder: Path) -> None:
    """Rename ``aside`` to ``folder``. One that is there steps aside first, and is whole until then: a folder cannot be
    replaced in one rename.
    """
    if not folder.exists():
        os.rename(aside, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    os.rename(folder, old / folder.name)
    os.rename(aside, folder)
    shutil.rmtree(old)


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's content, read piece by piece."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
