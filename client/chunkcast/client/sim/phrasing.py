"""What a simulated robot is told: its task's instruction, or other words for it from a table.

The table is TOML, a table a task with ``instruction``, ``paraphrases`` and ``held_out``, as policies are trained with;
an episode takes the texts in turn.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from chunkcast.v1 import policy_pb2 as pb

Phrasing = Literal["instruction", "paraphrases", "held_out"]
MAX_TABLE_BYTES = 2**22


class BadTable(Exception):
    """A table of instructions that cannot be used: one clear line."""


def task_of(instruction: pb.Instruction) -> str:
    """The task's plain name."""
    return instruction.task or instruction.text


def read_phrases(file: Path, phrasing: Phrasing, tasks: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Task to texts.

    Raises:
        BadTable: the file is missing, too large, no TOML, or has no such texts for a task.
    """
    try:
        if file.stat().st_size > MAX_TABLE_BYTES:
            raise BadTable(f"{file} has {file.stat().st_size} bytes, expected at most {MAX_TABLE_BYTES}")
        table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadTable(f"{file} cannot be read ({error.strerror}); expected a table of instructions in TOML") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadTable(f"{file} is not TOML ({error}); expected a table of instructions") from None
    phrases: dict[str, Sequence[str]] = {}
    for task in tasks:
        entry = table.get(task)
        found = entry.get(phrasing) if isinstance(entry, dict) else None
        texts = [found] if isinstance(found, str) else found
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise BadTable(f"{file} has no {phrasing} for {task}; expected one or more texts")
        phrases[task] = texts
    return phrases
