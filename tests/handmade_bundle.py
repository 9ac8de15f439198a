"""Bundles whose graph is written by hand, so that a test knows exactly what the server must answer.

The graph echoes: ``actions = f(state history)``, so a chunk shows which observations the server put together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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
            validation_noise_mse_by_timestep={"0-9": 0.5, "10-19": 0.03125},
            validation_action_mse=0.01,
            validation_action_variance=0.25,
            findings=[
                pb.HealthFinding(
                    code="no_improvement", severity=pb.FINDING_SEVERITY_WARNING, epoch=7, evidence="e", advice="a"
                ),
                pb.HealthFinding(code="batch_size", severity=pb.FINDING_SEVERITY_INFO, evidence="e", advice="a"),
            ],
        ),
        expected_success=[
            pb.ExpectedSuccess(source=pb.SUCCESS_SOURCE_MEASURED, ratio=0.75, low=0.5, high=0.875, episodes=20),
            pb.ExpectedSuccess(
                task="left", source=pb.SUCCESS_SOURCE_MEASURED, ratio=1.0, low=0.75, high=1.0, episodes=10
            ),
            pb.ExpectedSuccess(source=pb.SUCCESS_SOURCE_SEED_TABLE, ratio=0.85, low=0.8, high=0.9),
        ],
    )


def echo_graph(
    function: str = "Identity",
    state_size: int = STATE_SIZE,
    *,
    slow_matmuls: int = 0,
    committed: bool = False,
    instruction_size: int = len(INSTRUCTIONS),
) -> bytes:
    """``actions = function(state) + 0 * noise``.

    Args:
        function: a unary ONNX operator such as Identity or Sqrt.
        state_size: of the observation; the actions are its first ``STATE_SIZE`` elements.
        slow_matmuls: products of two 256 x 256 matrices that a run computes besides, whatever the batch size.
        committed: the graph also has the inputs of committed actions, with which its chunk begins.
        instruction_size: of an instruction's embedding, which the answer does not depend on.
    """
    chunk: list[Any] = ["batch", HISTORY, STATE_SIZE]
    inputs: dict[str, tuple[int, list[Any]]] = {
        STATE_KEY: (TensorProto.FLOAT, ["batch", HISTORY, state_size]),
        "instruction": (TensorProto.FLOAT, ["batch", instruction_size]),
        "noise": (TensorProto.FLOAT, chunk),
    }
    constants = [helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])]
    nodes = []
    state = STATE_KEY
    if state_size > STATE_SIZE:
        for name, value in (("first", 0), ("last", STATE_SIZE), ("axis", 2)):
            constants.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))
        nodes.append(helper.make_node("Slice", [STATE_KEY, "first", "last", "axis"], ["state"]))
        state = "state"
    echo = "echo" if committed else "actions"
    nodes += [
        helper.make_node(function, [state], ["answer"]),
        helper.make_node("Mul", ["slow" if slow_matmuls else "noise", "zero"], ["nothing"]),
        helper.make_node("Add", ["answer", "nothing"], [echo]),
    ]
    if slow_matmuls:
        nodes[:0] = _slow_nodes(slow_matmuls)
        mean = np.full((_SLOW_SIZE, _SLOW_SIZE), 1 / _SLOW_SIZE, np.float32)
        constants.append(numpy_helper.from_array(mean, "mean"))
    if committed:
        inputs["prefix_actions"] = (TensorProto.FLOAT, chunk)
        inputs["prefix_length"] = (TensorProto.INT64, ["batch"])
        constants.append(helper.make_tensor("rows", TensorProto.INT64, [1, HISTORY, 1], range(HISTORY)))
        constants.append(helper.make_tensor("row_axes", TensorProto.INT64, [2], [1, 2]))
        nodes += [
            helper.make_node("Unsqueeze", ["prefix_length", "row_axes"], ["lengths"]),
            helper.make_node("Less", ["rows", "lengths"], ["is_prefix"]),
            helper.make_node("Where", ["is_prefix", "prefix_actions", echo], ["actions"]),
        ]
    graph = helper.make_graph(
        nodes,
        "echo",
        [helper.make_tensor_value_info(name, *described) for name, described in inputs.items()],
        [helper.make_tensor_value_info("actions", TensorProto.FLOAT, chunk)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


_SLOW_SIZE = 256


def _slow_nodes(count: int) -> list[Any]:
    """A number ``slow`` that takes ``count`` matrix products and is finite. It begins with the noise: what does not
    depend on an input is computed once, when the graph is loaded.
    """
    nodes = [
        helper.make_node("ReduceSum", ["noise"], ["product_of_none"], keepdims=0),
        helper.make_node("Mul", ["product_of_none", "mean"], ["product_0"]),
    ]
    nodes += [helper.make_node("MatMul", [f"product_{i}", "mean"], [f"product_{i + 1}"]) for i in range(count)]
    return [*nodes, helper.make_node("ReduceMean", [f"product_{count}"], ["slow"], keepdims=0)]


def write_echo_bundle(
    folder: Path,
    function: str = "Identity",
    *,
    spec: pb.PolicySpec | None = None,
    slow_matmuls: int = 0,
    **names: str,
) -> Path:
    """Write a bundle of ``echo_graph`` for ``spec``; without it, further arguments go to ``echo_spec``."""
    spec = spec or echo_spec(**names)
    graph = echo_graph(
        function,
        spec.observations[0].shape[0],
        slow_matmuls=slow_matmuls,
        committed=spec.action.max_committed_steps > 0,
    )
    write_bundle(folder, graph, spec, overwrite=False)
    return folder
