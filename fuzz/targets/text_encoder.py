"""A text encoder's folder.

Input: a byte that says what is read (modulo 2: ``encoder.json``, or ``tokenizer.json`` beside an ``encoder.json`` that
fits it), and that file's bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from typing import Any

from chunkcast.language.text_encoder import (
    MAX_EMBEDDING_SIZE,
    MAX_TOKENS,
    TextEncoder,
    TextEncoderError,
    find_encoder,
    identity,
    read_description,
)
from fuzz.checks import require, require_array, require_clear
from fuzz.mutators import as_json, prefixed
from fuzz.policies import WORDS, encoder_description, encoder_graph, tokenizer_json, write_encoder
from fuzz.workspace import workspace

DESCRIPTION, TOKENIZER = range(2)
SENTENCES = ("left", "turn right now", "\N{GRINNING FACE} ? \x1b", "please " * 7)

mutate = prefixed(as_json)


@cache
def _files() -> tuple[bytes, bytes]:
    return encoder_graph(), tokenizer_json()


def run(data: bytes) -> None:
    """Read an encoder; one that is accepted encodes."""
    if not data:
        return
    folder, (graph, tokenizer) = workspace() / "encoders" / "one", _files()
    if data[0] % 2 == DESCRIPTION:
        write_encoder(folder, data[1:], graph, tokenizer)
        _describe()
    else:
        tokenizer = data[1:]
        write_encoder(folder, json.dumps(encoder_description(graph, tokenizer)).encode(), graph, tokenizer)
    try:
        encoder = TextEncoder(folder)
        for sentence in SENTENCES:
            embeddings = encoder.encode([sentence, "left"])
            require_array("an embedding", embeddings, (2, encoder.size), "f4")
    except TextEncoderError as refused:
        require_clear(refused, of_a_client=False)


def _describe() -> None:
    """The folder's description, and the search for an encoder among others."""
    folder = workspace() / "encoders"
    find_encoder(folder, "0" * 64)
    try:
        description = read_description(folder / "one")
    except TextEncoderError as refused:
        require_clear(refused, of_a_client=False)
        return
    sizes = description["embedding_size"], description["max_tokens"]
    require(all(type(size) is int for size in sizes), f"sizes {sizes} are no integers")
    require(1 <= sizes[0] <= MAX_EMBEDDING_SIZE and 1 <= sizes[1] <= MAX_TOKENS, f"sizes {sizes} are out of bounds")
    require(description["name"].isprintable() and len(description["name"]) <= 256, "a name is no short printable line")
    require(find_encoder(folder, identity(description)) == folder / "one", "an encoder is not found by its identity")


def seeds() -> dict[str, bytes]:
    """Both files whole, and each with one fault."""
    graph, tokenizer = _files()

    def description(change: Callable[[dict[str, Any]], object] = lambda _: None) -> bytes:
        document = encoder_description(graph, tokenizer)
        change(document)
        return bytes([DESCRIPTION]) + json.dumps(document).encode()

    def tokens(change: Callable[[dict[str, Any]], object] = lambda _: None) -> bytes:
        document = json.loads(tokenizer)
        change(document)
        return bytes([TOKENIZER]) + json.dumps(document).encode()

    def sha256(value: Any) -> Callable[[dict[str, Any]], object]:
        return lambda d: d["files"]["tokenizer.json"].update(sha256=value)

    return {
        "description": description(),
        "description-other-version": description(lambda d: d.update(format_version=2)),
        "description-version-long": description(lambda d: d.update(format_version="x" * 3000)),
        "description-size-true": description(lambda d: d.update(embedding_size=True)),
        "description-size-float": description(lambda d: d.update(embedding_size=8.0)),
        "description-size-other": description(lambda d: d.update(embedding_size=9)),
        "description-tokens-many": description(lambda d: d.update(max_tokens=10**6)),
        "description-name-of-lines": description(lambda d: d.update(name="a\nb")),
        "description-name-long": description(lambda d: d.update(name="x" * 3000)),
        "description-hash-half-surrogate": description(sha256("\ud800")),
        "description-hash-number": description(sha256(7)),
        "description-hash-list": description(sha256([["a"]])),
        "description-hash-of-lines": description(sha256("a\nb")),
        "description-hash-other": description(sha256(hashlib.sha256(b"").hexdigest())),
        "description-files-list": description(lambda d: d.update(files=["encoder.onnx"])),
        "description-files-out": description(lambda d: d["files"].update({"../x": {"sha256": ""}})),
        "description-deep": bytes([DESCRIPTION]) + b'{"a": ' + b"[" * 3000,
        "description-no-json": bytes([DESCRIPTION]) + b"\xff\xfe",
        "description-list": bytes([DESCRIPTION]) + b"[]",
        "tokenizer": tokens(),
        "tokenizer-empty": bytes([TOKENIZER]) + b"{}",
        "tokenizer-cut": bytes([TOKENIZER]) + tokenizer[:-20],
        "tokenizer-other-words": tokens(
            lambda d: d["model"].update(vocab={word: i + len(WORDS) for i, word in enumerate(WORDS)})
        ),
        "tokenizer-huge-token": tokens(lambda d: d["model"]["vocab"].update(left=2**32 - 1)),
        "tokenizer-no-unknown": tokens(lambda d: d["model"].update(unk_token="?")),  # noqa: S106
        "tokenizer-truncates": tokens(
            lambda d: d.update(
                truncation={"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
            )
        ),
        "tokenizer-pads": tokens(
            lambda d: d.update(
                padding={
                    "strategy": {"Fixed": 2**31},
                    "direction": "Right",
                    "pad_to_multiple_of": None,
                    "pad_id": 0,
                    "pad_type_id": 0,
                    "pad_token": "[UNK]",
                }
            )
        ),
        "tokenizer-pattern": tokens(
            lambda d: d.update(
                normalizer={"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": "left"},
            )
        ),
    }
