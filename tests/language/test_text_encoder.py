"""The shipped text encoder: real sentences, and folders that are damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chunkcast.language.text_encoder import TextEncoder, TextEncoderError, find_encoder, read_description
from tests.conftest import SHIPPED_ENCODER


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(SHIPPED_ENCODER)


def test_meaning_is_nearness(encoder: TextEncoder) -> None:
    open_drawer, pull_drawer, lock_door = encoder.encode(["open the drawer", "pull the drawer open", "lock the door"])
    assert open_drawer @ pull_drawer > open_drawer @ lock_door + 0.2


def test_embeddings_are_of_unit_length_and_do_not_depend_on_the_batch(encoder: TextEncoder) -> None:
    texts = ["open the drawer", "Pick up the puck, then bring it to the goal behind the wall!", "é\u4e16 ?", "x" * 512]
    together = encoder.encode(texts)
    assert together.shape == (4, encoder.size) == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    for text, embedding in zip(texts, together, strict=True):
        np.testing.assert_allclose(encoder.encode([text])[0], embedding, atol=1e-5)
    assert encoder.encode([]).shape == (0, 384)


@pytest.mark.parametrize("text", ["", "  ", "x" * 513])
def test_what_is_no_sentence_is_refused(encoder: TextEncoder, text: str) -> None:
    with pytest.raises(TextEncoderError, match="expected 1 to 512"):
        encoder.encode(["open the drawer", text])


def test_no_sentence_is_cut_short(encoder: TextEncoder) -> None:
    """What stands at its end may be what matters."""
    encoder.encode(["one " * 62])
    with pytest.raises(TextEncoderError, match=r"an instruction has 65 tokens, expected at most 64"):
        encoder.encode(["open the drawer", "one " * 63])


def test_it_is_found_by_its_hash(encoder: TextEncoder, tmp_path: Path) -> None:
    folder = SHIPPED_ENCODER.parent
    assert find_encoder(folder, encoder.sha256) == SHIPPED_ENCODER
    assert find_encoder(folder, "0" * 64) is None
    assert find_encoder(tmp_path / "missing", encoder.sha256) is None


def change(key: str, value: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "encoder.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "encoder.json").unlink(), "encoder.json is missing"),
        (lambda folder: (folder / "encoder.json").write_text("["), "is not JSON"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json has SHA-256 44136fa355b3"),
        (lambda folder: (folder / "encoder.onnx").unlink(), "encoder.onnx is missing"),
        (change("format_version", 2), "format_version 2, expected 1"),
        (change("embedding_size", "many"), "embedding_size is 'many'"),
        (change("max_tokens", 10**6), "max_tokens is 1000000"),
        (change("files", {"../x": {"sha256": ""}}), "files must name the SHA-256 of"),
        (change("name", None), "name is None"),
        (change("embedding_size", 383), "makes embeddings of 384 entries, encoder.json says 383"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(SHIPPED_ENCODER, folder)
    damage(folder)
    with pytest.raises(TextEncoderError, match=message):
        TextEncoder(folder)


def test_the_identity_is_of_the_files_alone(tmp_path: Path) -> None:
    folder = tmp_path / "encoders" / "other-name"
    shutil.copytree(SHIPPED_ENCODER, folder)
    change("name", "other")(folder)
    assert read_description(folder)["name"] == "other"
    assert find_encoder(folder.parent, TextEncoder(SHIPPED_ENCODER).sha256) == folder
