"""The table of instructions: TOML, a table a task, with its instruction, paraphrases to train on and others held out.

::

    [drawer-open-v3]
    instruction = "open the drawer"
    paraphrases = ["pull the drawer open", "pull out the drawer"]
    held_out = ["get the drawer open"]

Every text stands once in the whole file: the same words cannot mean two tasks, and what is held out is not trained on.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chunkcast.language.text_encoder import TextEncoder, TextEncoderError
from chunkcast.training.errors import TrainingError
from chunkcast.training.language.instructions import EncoderIdentity, Instructions, task_names

METAWORLD_INSTRUCTIONS = Path(__file__).with_name("metaworld_instructions.toml")


@dataclass(frozen=True)
class TaskInstructions:
    """How one task is told.

    Attributes:
        instruction: the text that stands for it.
        paraphrases: trained on beside it.
        held_out: never trained on.
    """

    instruction: str
    paraphrases: tuple[str, ...]
    held_out: tuple[str, ...]


def read_instruction_table(file: Path) -> dict[str, TaskInstructions]:
    """Task name to instructions.

    Raises:
        TrainingError: the file is missing or not TOML, a task has no instruction, or a text stands twice.
    """
    try:
        parsed = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainingError(f"{file} is missing; expected a table of instructions in TOML") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"{file} is not TOML ({error}); expected a table of instructions") from None
    table = {task: _task_instructions(file, task, entry) for task, entry in parsed.items()}
    owner: dict[str, str] = {}
    for task, told in table.items():
        for text in (told.instruction, *told.paraphrases, *told.held_out):
            if text in owner:
                raise TrainingError(f"{file}: {text!r} stands for {owner[text]} and {task}; each text may stand once")
            owner[text] = task
    return table


def _task_instructions(file: Path, task: str, entry: Any) -> TaskInstructions:
    def texts(key: str) -> tuple[str, ...]:
        values = entry.get(key, []) if isinstance(entry, Mapping) else None
        if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
            raise TrainingError(f"{file}: {key} of {task} must be a list of sentences")
        return tuple(values)

    instruction = entry.get("instruction") if isinstance(entry, Mapping) else None
    if not isinstance(instruction, str) or not instruction.strip():
        raise TrainingError(f'{file}: {task} has no instruction; expected instruction = "..."')
    return TaskInstructions(instruction, texts("paraphrases"), texts("held_out"))


def told_instructions(tasks: Sequence[str], encoder_folder: Path | None, table_file: Path | None) -> Instructions:
    """How ``tasks`` are told: by plain names where there is no encoder, else by a table's sentences.

    Args:
        table_file: by default MetaWorld's, and for what is not in it the task's own name.

    Raises:
        TrainingError: a task is not in the table, or table or encoder cannot be used.
    """
    if encoder_folder is None:
        return task_names(tasks)
    table = read_instruction_table(table_file or METAWORLD_INSTRUCTIONS)
    if table_file is None:
        # Demonstrations of lerobot's name their tasks by sentences already.
        table = {task: table.get(task, TaskInstructions(task, (), ())) for task in tasks}
    return encoded_instructions(tasks, table, encoder_folder)


def encoded_instructions(
    tasks: Sequence[str], table: Mapping[str, TaskInstructions], encoder_folder: Path
) -> Instructions:
    """The instructions of ``tasks`` with the encoder's embeddings.

    Raises:
        TrainingError: a task is not in the table, or the encoder cannot be used.
    """
    if missing := [task for task in tasks if task not in table]:
        raise TrainingError(f"no instruction for {', '.join(missing)}; add them to the table of --instructions")
    # As many phrases for each task, so that they are drawn alike: a task that has fewer says them more often.
    most = max(1 + len(table[task].paraphrases) for task in tasks)
    phrases = []
    for task in tasks:
        own = (table[task].instruction, *table[task].paraphrases)
        phrases.append(tuple(own[index % len(own)] for index in range(most)))
    try:
        encoder = TextEncoder(encoder_folder)
        embeddings = encoder.encode([text for own in phrases for text in own])
    except TextEncoderError as error:
        raise TrainingError(str(error)) from None
    return Instructions(
        tasks=tuple(tasks),
        phrases=tuple(phrases),
        embeddings=torch.from_numpy(embeddings.reshape(len(tasks), most, -1)),
        encoder=EncoderIdentity(encoder.name, encoder.sha256),
    )
