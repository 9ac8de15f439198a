"""What health signals are measured against.

Input: the bytes of ``health.binpb``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.server.errors import BundleError
from chunkcast.server.health import signals
from chunkcast.server.health.reference import read_references
from chunkcast.v1 import health_pb2 as pb_health
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.tensors import encode_tensor
from fuzz.checks import require, require_array, require_clear
from fuzz.mutators import as_protobuf
from fuzz.policies import plain_policy
from tests.handmade_bundle import STATE_SIZE

WIDTH = 3
"""Of the embedding."""

mutate = as_protobuf


@cache
def _spec() -> pb.PolicySpec:
    return plain_policy()


def run(data: bytes) -> None:
    """Read references; those that are accepted can be measured against."""
    spec = _spec()
    try:
        references = read_references(spec, data)
    except BundleError as refused:
        require_clear(refused, of_a_client=False)
        return
    require(list(references) == [each.text for each in spec.instructions], "references of other instructions")
    state = np.ones(STATE_SIZE, np.float32)
    for each in references.values():
        rows, columns = len(each.observations), STATE_SIZE + 2 * len(spec.action.elements) + 1
        width = len(each.embedding_mean)
        for name, shape in (
            ("scale", (STATE_SIZE,)),
            ("observations", (rows, STATE_SIZE)),
            ("squares", (rows,)),
            ("embedding_axes", (len(each.embedding_axes), width)),
            ("response", (STATE_SIZE, columns)),
            ("response_deviation", (STATE_SIZE,)),
        ):
            require_array(name, getattr(each, name), shape, np.float32)
        require(rows > 0 and bool((each.scale > 0).all()), "a reference divides by zero")
        with np.errstate(all="ignore"):  # the judgement bounds a score that is not finite
            signals.novelty(state, each)
            signals.embedding_novelty(np.ones(width, np.float32), each)
            signals.response(state, state, np.ones((2, len(spec.action.elements)), np.float32), each)


def reference() -> pb_health.HealthReference:
    """One that fits ``plain_policy``."""
    spec = plain_policy()
    columns = STATE_SIZE + 2 * len(spec.action.elements) + 1
    sizes = {
        "scale": (STATE_SIZE,),
        "observations": (6, STATE_SIZE),
        "embedding_mean": (WIDTH,),
        "embedding_axes": (2, WIDTH),
        "response": (STATE_SIZE, columns),
        "response_deviation": (STATE_SIZE,),
    }
    tensors = {name: encode_tensor(np.full(shape, 0.5, np.float32)) for name, shape in sizes.items()}
    tasks = [pb_health.TaskReference(task=each.text, **tensors) for each in spec.instructions]
    return pb_health.HealthReference(tasks=tasks)


def seeds() -> dict[str, bytes]:
    """A whole one, and some with one fault."""
    made = {"whole": reference(), "none": pb_health.HealthReference()}
    faults: dict[str, tuple[str, npt.NDArray[Any]]] = {
        "large": ("observations", np.full((6, STATE_SIZE), 3e38, np.float32)),
        "zero": ("scale", np.zeros(STATE_SIZE, np.float32)),
        "nan": ("response", np.full((STATE_SIZE, 2 * STATE_SIZE + 5), np.nan, np.float32)),
        "no-rows": ("observations", np.zeros((0, STATE_SIZE), np.float32)),
        "other-size": ("embedding_axes", np.ones((2, WIDTH + 1), np.float32)),
        "other-dtype": ("scale", np.ones(STATE_SIZE)),
    }
    for name, (field, array) in faults.items():
        made[name] = reference()
        getattr(made[name].tasks[0], field).CopyFrom(encode_tensor(array))
    tensors = {
        "many-axes": pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[1] * 65, data=bytes(4)),
        "endless-product": pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[2**62] * 300),
        "unknown-dtype": pb.Tensor(dtype=77, shape=[4], data=bytes(16)),  # type: ignore[arg-type]
    }
    for name, tensor in tensors.items():
        made[name] = reference()
        made[name].tasks[1].scale.CopyFrom(tensor)
    made["other-task"] = reference()
    made["other-task"].tasks[0].task = "a\nb"
    return {name: message.SerializeToString(deterministic=True) for name, message in made.items()} | {"cut": b"\n\x05"}
