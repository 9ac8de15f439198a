"""Policies that the targets read for: specifications, observations that fit them, and a text encoder of eight words."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from chunkcast.client.wire import encode_observation
from chunkcast.language.text_encoder import DESCRIPTION_NAME, GRAPH_NAME, TOKENIZER_NAME, TextEncoder
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.tensors import DTYPES
from fuzz.workspace import workspace
from tests.handmade_bundle import echo_spec

EYE = "observation.images.eye"
SIZE = 16
EPISODE = "e"
WORDS = ("[UNK]", "left", "right", "turn", "go", "now", "slowly", "please")


def plain_policy() -> pb.PolicySpec:
    """Of a state alone, with instructions that are taken as they stand."""
    return echo_spec()


def committed_policy() -> pb.PolicySpec:
    """Has learned to continue committed actions."""
    spec = echo_spec("committed")
    spec.action.max_committed_steps = 2
    return spec


def seeing_policy() -> pb.PolicySpec:
    """Of a state and a camera."""
    spec = echo_spec("seeing")
    spec.observations.add(key=EYE, dtype=pb.DATA_TYPE_UINT8, shape=[SIZE, SIZE, 3], camera=pb.CameraSpec(name="eye"))
    return spec


def hearing_policy() -> pb.PolicySpec:
    """Takes free text."""
    spec = echo_spec("hearing")
    encoder = small_encoder()
    for instruction in spec.instructions:
        instruction.embedding[:] = encoder.encode([instruction.text])[0].tolist()
    spec.text_encoder.CopyFrom(pb.TextEncoder(name=encoder.name, sha256=encoder.sha256, min_similarity=0.5))
    return spec


def many_dtypes_policy() -> pb.PolicySpec:
    """An entry of each dtype, a number without axes among them, and no instructions."""
    spec = echo_spec("dtypes")
    spec.observation_steps = 1
    del spec.observations[:], spec.instructions[:]
    for code, shape in zip(DTYPES, ([2, 3], [2], [], [1, 2], [2]), strict=True):
        spec.observations.add(key=pb.DataType.Name(code), dtype=code, shape=shape)
    return spec


def fitting(spec: pb.PolicySpec, step: int = 0, **more: Any) -> pb.Observation:
    """An observation that ``spec`` describes; ``more`` goes to ``encode_observation``."""
    arrays: dict[str, npt.NDArray[Any]] = {
        entry.key: np.full(tuple(entry.shape), 1 + step % 100, DTYPES[entry.dtype]) for entry in spec.observations
    }
    told = spec.instructions[0].text if spec.instructions else ""
    return encode_observation(arrays, **{"episode_id": EPISODE, "step": step, "instruction": told, **more})


def encoder_graph() -> bytes:
    """Sentences to the mean of their words' vectors, of unit length: float32 ``[batch, 8]``."""
    size = len(WORDS)
    table = np.eye(size, dtype=np.float32) + np.float32(0.1)
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([1], np.int64), "tokens"),
        numpy_helper.from_array(np.array([2], np.int64), "last"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide_mask"]),
        helper.make_node("Mul", ["vectors", "wide_mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["sum"], keepdims=0),
        helper.make_node("ReduceL2", ["sum", "tokens"], ["length"]),
        helper.make_node("Div", ["sum", "length"], ["sentence_embedding"]),
    ]
    tokens: list[Any] = ["batch", "tokens"]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, tokens) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", size])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def tokenizer_json() -> bytes:
    """Splits at spaces; each of ``WORDS`` is a token."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer.to_str().encode()


def encoder_description(graph: bytes, tokenizer: bytes) -> dict[str, Any]:
    """``encoder.json`` for these files."""
    files = {GRAPH_NAME: graph, TOKENIZER_NAME: tokenizer}
    return {
        "format_version": 1,
        "name": "small",
        "embedding_size": len(WORDS),
        "max_tokens": 8,
        "files": {name: {"sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()},
    }


def write_encoder(folder: Path, description: bytes, graph: bytes, tokenizer: bytes) -> None:
    """An encoder's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION_NAME).write_bytes(description)
    (folder / GRAPH_NAME).write_bytes(graph)
    (folder / TOKENIZER_NAME).write_bytes(tokenizer)


@cache
def small_encoder() -> TextEncoder:
    """The encoder of ``hearing_policy``."""
    graph, tokenizer = encoder_graph(), tokenizer_json()
    folder = workspace() / "small-encoder"
    write_encoder(folder, json.dumps(encoder_description(graph, tokenizer)).encode(), graph, tokenizer)
    return TextEncoder(folder)
