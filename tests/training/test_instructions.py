"""The table of instructions, their embeddings, and how a bundle says them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chunkcast.simulation.metaworld_tasks import all_tasks
from chunkcast.training.errors import TrainingError
from chunkcast.training.language.instruction_table import (
    METAWORLD_INSTRUCTIONS,
    TaskInstructions,
    encoded_instructions,
    read_instruction_table,
)
from chunkcast.training.language.instructions import Instructions, task_names
from chunkcast.training.language.messages import instruction_messages, least_similarity, text_encoder_message
from tests.conftest import SHIPPED_ENCODER

TABLE = {
    "drawer": TaskInstructions("open the drawer", ("pull the drawer open", "slide the drawer open"), ("unused",)),
    "door": TaskInstructions("lock the door", ("bolt the door",), ()),
}


@pytest.fixture(scope="module")
def instructions() -> Instructions:
    return encoded_instructions(("door", "drawer"), TABLE, SHIPPED_ENCODER)


def test_every_metaworld_task_has_an_instruction_and_words_held_out() -> None:
    table = read_instruction_table(METAWORLD_INSTRUCTIONS)
    assert sorted(table) == list(all_tasks())
    assert all(len(told.paraphrases) >= 3 and len(told.held_out) >= 3 for told in table.values())


def test_every_phrase_is_embedded_and_tasks_have_as_many(instructions: Instructions) -> None:
    assert instructions.phrases[0] == ("lock the door", "bolt the door", "lock the door")
    assert instructions.phrases[1] == ("open the drawer", "pull the drawer open", "slide the drawer open")
    assert instructions.embeddings.shape == (2, 3, 384)
    mean, scale = instructions.moments()
    standard = (instructions.embeddings - mean) / scale
    assert float(standard.square().mean()) == pytest.approx(1.0, rel=1e-4)
    again = Instructions.from_facts(instructions.facts(), instructions.embeddings)
    assert again == instructions


def test_in_a_bundle(instructions: Instructions) -> None:
    door, drawer = instruction_messages(instructions)
    assert (door.text, door.task, list(door.paraphrases)) == ("lock the door", "door", ["bolt the door"])
    assert list(drawer.paraphrases) == ["pull the drawer open", "slide the drawer open"]
    torch.testing.assert_close(torch.tensor(drawer.embedding), instructions.embeddings[1, 0])
    encoder = text_encoder_message(instructions)
    assert encoder is not None
    assert encoder.name == "all-minilm-l6-v2"
    # The paraphrases are nearer to each other than that.
    assert 0.3 < encoder.min_similarity == least_similarity(instructions) < 0.9


def test_plain_names_are_one_hot() -> None:
    named = task_names(("a", "b"))
    first, second = instruction_messages(named)
    assert (first.text, first.task, list(first.embedding), list(second.embedding)) == ("a", "", [1, 0], [0, 1])
    assert text_encoder_message(named) is None
    mean, scale = named.moments()
    assert (mean.tolist(), float(scale)) == ([0, 0], 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\ninstruction = 'go'\n[b]\ninstruction = 'go'", "'go' stands for a and b"),
        ("[a]\ninstruction = 'go'\nheld_out = ['go']", "'go' stands for a and a"),
        ("[a]\nparaphrases = ['go']", "a has no instruction"),
        ("a = 1", "a has no instruction|a must be a list"),
        ("[a]\ninstruction = 'go'\nparaphrases = 'walk'", "paraphrases of a must be a list"),
        ("[", "is not TOML"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "table.toml"
    file.write_text(text)
    with pytest.raises(TrainingError, match=message):
        read_instruction_table(file)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"nowhere.toml is missing"):
        read_instruction_table(tmp_path / "nowhere.toml")
    with pytest.raises(TrainingError, match="no instruction for juggle; add"):
        encoded_instructions(("door", "juggle"), TABLE, SHIPPED_ENCODER)
    with pytest.raises(TrainingError, match=r"encoder.json is missing"):
        encoded_instructions(("door",), TABLE, tmp_path)
