"""Bundles whose graph is written by hand, so that a test knows exactly what the server must answer.

The graph echoes: ``actions = f(state history)``, so a chunk shows which observations the server put together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from chunkcast.training.export.bundle_writer import write_bundle
from chunkcast.v1 import policy_pb2 as pb

STATE_KEY = "observation.state"
STATE_SIZE = 4
HISTORY = 3
INSTRUCTIONS = ("left", "right")
BOUND = 100.0


def echo_spec(name: str = "echo", version: str = "1") -> pb.PolicySpec:
    """A policy of ``HISTORY`` observations whose chunk has as many rows."""
    return pb.PolicySpec(
        format_version=1,
        name=name,
        version=version,
        observations=[pb.ObservationEntry(key=STATE_KEY, dtype=pb.DATA_TYPE_FLOAT32, shape=[STATE_SIZE])],
        observation_steps=HISTORY,
        instructions=[
            pb.Instruction(text=text, embedding=[float(i == j) for j in range(len(INSTRUCTIONS))])
            for i, text in enumerate(INSTRUCTIONS)
        ],
        action=pb.ActionSpec(
            elements=[pb.ActionElement(name=f"a{i}", unit="1", low=-BOUND, high=BOUND) for i in range(STATE_SIZE)],
            control_rate_hz=50.0,
            horizon=HISTORY,
            execute_steps=2,
        ),
        sampler=pb.SamplerSpec(
            name="none", prediction_type=pb.PREDICTION_TYPE_SAMPLE, train_timesteps=1, evaluations=1
        ),
        training=pb.TrainingFacts(
            data_sha256="0" * 64,
            train_loss=0.5,
            validation_loss=0.25,
            train_noise_mse=0.125,
            validation_noise_mse=0.0625,
        ),
    )


def echo_graph(function: str = "Identity", state_size: int = STATE_SIZE) -> bytes:
    """``actions = function(state) + 0 * noise``; ``function`` is a unary ONNX operator such as Identity or Sqrt."""
    state: list[Any] = ["batch", HISTORY, state_size]
    chunk: list[Any] = ["batch", HISTORY, STATE_SIZE]
    embedding: list[Any] = ["batch", len(INSTRUCTIONS)]
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])
    graph = helper.make_graph(
        [
            helper.make_node(function, [STATE_KEY], ["answer"]),
            helper.make_node("Mul", ["noise", "zero"], ["nothing"]),
            helper.make_node("Add", ["answer", "nothing"], ["actions"]),
        ],
        "echo",
        [
            helper.make_tensor_value_info(STATE_KEY, TensorProto.FLOAT, state),
            helper.make_tensor_value_info("instruction", TensorProto.FLOAT, embedding),
            helper.make_tensor_value_info("noise", TensorProto.FLOAT, chunk),
        ],
        [helper.make_tensor_value_info("actions", TensorProto.FLOAT, chunk)],
        [zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def write_echo_bundle(folder: Path, function: str = "Identity", **spec: str) -> Path:
    """Write a bundle of ``echo_graph(function)``; further arguments go to ``echo_spec``."""
    write_bundle(folder, echo_graph(function), echo_spec(**spec), overwrite=False)
    return folder
