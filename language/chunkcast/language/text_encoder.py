"""A text encoder's folder, checked and run; see the package for its files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FORMAT_VERSION = 1
DESCRIPTION_NAME = "encoder.json"
GRAPH_NAME = "encoder.onnx"
TOKENIZER_NAME = "tokenizer.json"

MAX_DESCRIPTION_BYTES = 2**16
MAX_FILE_BYTES = 2**30
MAX_TOKENS = 512
MAX_EMBEDDING_SIZE = 2**14
MAX_NAME_LENGTH = 128
MAX_MESSAGE = 1000
MAX_TEXT_LENGTH = 512
"""Of a sentence, in characters: an instruction, not a document."""
BATCH = 32
"""Sentences that are encoded together."""

FloatArray = npt.NDArray[np.float32]


class TextEncoderError(Exception):
    """An encoder's folder is damaged or of another version, or a text is none that can be encoded: one clear line."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(each if each.isprintable() else "?" for each in message[:MAX_MESSAGE]))


class TextEncoder:
    """Sentences in, vectors of unit length out.

    Args:
        folder: of the encoder; see the package.
        threads: that one sentence may use.

    Attributes:
        name: such as ``all-minilm-l6-v2``.
        sha256: names graph and tokenizer; see ``identity``.
        size: of an embedding, ``E``.

    Raises:
        TextEncoderError: the folder is none, is damaged, or is of another version.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        description = read_description(folder)
        contents = {name: _read_file(folder, name, description) for name in (GRAPH_NAME, TOKENIZER_NAME)}
        self.name: str = description["name"]
        self.sha256 = identity(description)
        self.size: int = description["embedding_size"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(contents[GRAPH_NAME], options, ["CPUExecutionProvider"])
            made = self._session.get_outputs()[0].shape[-1]
            self._tokenizer = Tokenizer.from_buffer(contents[TOKENIZER_NAME])
        except Exception as error:  # neither library has an error class of its own
            reason = str(error).splitlines()[0]
            raise TextEncoderError(f"{folder} cannot be loaded ({reason}); export the encoder again") from None
        if made != self.size:
            raise TextEncoderError(f"{folder} makes embeddings of {made} entries, {DESCRIPTION_NAME} says {self.size}")
        self._max_tokens: int = description["max_tokens"]
        # What would be cut off may be what matters ("... but not the red one"): too long a sentence is refused instead.
        self._tokenizer.no_truncation()
        self._tokenizer.enable_padding()

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """The embeddings of ``texts``, float32 ``[len(texts), E]``.

        Raises:
            TextEncoderError: a text is empty or too long, or its embedding is not finite.
        """
        for text in texts:
            if not text.strip() or len(text) > MAX_TEXT_LENGTH:
                what = f"has {len(text)} characters" if text.strip() else "is blank"
                raise TextEncoderError(f"an instruction {what}, expected 1 to {MAX_TEXT_LENGTH}: one sentence")
        parts = [self._encode(texts[first : first + BATCH]) for first in range(0, len(texts), BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, self.size), np.float32)

    def _encode(self, texts: Sequence[str]) -> FloatArray:
        try:
            encodings = self._tokenizer.encode_batch(list(texts))
        except Exception as error:  # as above; such as a word for unknown words that is itself unknown
            raise TextEncoderError(f"{self.name} cannot split an instruction ({error}); export it again") from None
        longest = max(sum(each.attention_mask) for each in encodings)
        if longest > self._max_tokens:
            raise TextEncoderError(
                f"an instruction has {longest} tokens, expected at most {self._max_tokens} (about as many words): "
                "one sentence"
            )
        feeds = {
            "input_ids": np.array([each.ids for each in encodings], np.int64),
            "attention_mask": np.array([each.attention_mask for each in encodings], np.int64),
        }
        try:
            embeddings: FloatArray = self._session.run(["sentence_embedding"], feeds)[0]
        except Exception as error:  # such as a token that the graph has no row for
            raise TextEncoderError(f"{self.name} cannot encode an instruction ({error}); export it again") from None
        if not np.isfinite(embeddings).all():
            raise TextEncoderError(f"{self.name} gives embeddings that are not finite; export the encoder again")
        return embeddings


def find_encoder(folder: Path, sha256: str) -> Path | None:
    """The folder within ``folder`` whose encoder is ``sha256``, if there is one; damaged ones are passed over."""
    for file in sorted(folder.glob(f"*/{DESCRIPTION_NAME}")):
        try:
            if identity(read_description(file.parent)) == sha256:
                return file.parent
        except TextEncoderError:
            continue
    return None


def identity(description: Mapping[str, Any]) -> str:
    """SHA-256 over the names and hashes of an encoder's files: the same for the same sentences to the same vectors."""
    lines = sorted(f"{name} {facts['sha256']}\n" for name, facts in description["files"].items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_description(folder: Path) -> dict[str, Any]:
    """``encoder.json``, checked.

    Raises:
        TextEncoderError: it is missing, not JSON, of another version, or its sizes are out of bounds.
    """
    file = folder / DESCRIPTION_NAME
    try:
        if file.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise TextEncoderError(f"{file} has {file.stat().st_size} bytes, expected at most {MAX_DESCRIPTION_BYTES}")
        description = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise TextEncoderError(f"{file} is missing; expected a folder made by chunkcast-text-encoder") from None
    except OSError as error:
        raise TextEncoderError(f"{file} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise TextEncoderError(f"{file} is not JSON ({error}); export the encoder again") from None
    version = description.get("format_version") if isinstance(description, dict) else None
    if version != FORMAT_VERSION:
        raise TextEncoderError(f"{file} has format_version {version!r}, expected {FORMAT_VERSION}; export it again")
    limits = {"embedding_size": MAX_EMBEDDING_SIZE, "max_tokens": MAX_TOKENS}
    for name, limit in limits.items():
        value = description.get(name)
        if type(value) is not int or not 1 <= value <= limit:
            raise TextEncoderError(f"{file}: {name} is {value!r}, expected an integer from 1 to {limit}")
    files = description.get("files")
    named = isinstance(files, dict) and set(files) == {GRAPH_NAME, TOKENIZER_NAME}
    if not named or not all(isinstance(facts, dict) and _is_sha256(facts.get("sha256")) for facts in files.values()):
        raise TextEncoderError(f"{file}: files must name the SHA-256 of {GRAPH_NAME} and {TOKENIZER_NAME}")
    called = description.get("name")
    if not isinstance(called, str) or not called.isprintable() or len(called) > MAX_NAME_LENGTH:
        raise TextEncoderError(f"{file}: name is {called!r}, expected at most {MAX_NAME_LENGTH} printable characters")
    return dict(description)


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _read_file(folder: Path, name: str, description: Mapping[str, Any]) -> bytes:
    file = folder / name
    try:
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TextEncoderError(f"{file} has {size} bytes, expected at most {MAX_FILE_BYTES}")
        content = file.read_bytes()
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise TextEncoderError(f"{file} {reason}; export the encoder again") from None
    expected = description["files"][name]["sha256"]
    if (found := hashlib.sha256(content).hexdigest()) != expected:
        raise TextEncoderError(
            f"{file} has SHA-256 {found[:12]}..., {DESCRIPTION_NAME} says {str(expected)[:12]}...; it is damaged or "
            "was replaced: export the encoder again"
        )
    return content
