"""Tensors on the wire: the codec that client and server share, and the session's own reading of an observation's.

Input: an ``Observation``.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from google.protobuf.message import DecodeError

from chunkcast.server.errors import ObservationRejected
from chunkcast.server.instructions import KnownInstructions
from chunkcast.server.session import Session
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.tensors import DTYPES, TensorError, decode_tensor, encode_tensor
from fuzz.checks import require, require_array, require_clear
from fuzz.mutators import as_protobuf
from fuzz.policies import fitting, many_dtypes_policy

mutate = as_protobuf


@cache
def _policy() -> tuple[pb.PolicySpec, KnownInstructions]:
    spec = many_dtypes_policy()
    return spec, KnownInstructions(spec)


def run(data: bytes) -> None:
    """Read every tensor of an observation, alone and through a session."""
    try:
        observation = pb.Observation.FromString(data)
    except DecodeError:
        return
    for tensor in (*observation.tensors.values(), observation.committed_actions, observation.executed_actions):
        _decode(tensor)
    spec, instructions = _policy()
    session = Session(spec, instructions)
    try:
        session.accept(observation)
    except ObservationRejected as rejected:
        require_clear(rejected)
        return
    inputs = session.graph_inputs(observation)
    for entry in spec.observations:
        require_array(entry.key, inputs[entry.key], (1, *entry.shape), DTYPES[entry.dtype])


def _decode(tensor: pb.Tensor) -> None:
    try:
        array = decode_tensor(tensor)
    except TensorError as error:
        require_clear(error)
        return
    require(array.shape == tuple(tensor.shape), f"shape {array.shape} of a tensor that says {list(tensor.shape)}")
    require(array.dtype == DTYPES[tensor.dtype], f"dtype {array.dtype} of a tensor that says {int(tensor.dtype)}")
    require(not array.flags.writeable, "a tensor's array can be written to")
    require(encode_tensor(array).data == tensor.data, "a tensor has other data after decoding and encoding")


def seeds() -> dict[str, bytes]:
    """An observation of every dtype, and tensors that contradict themselves."""
    good = fitting(many_dtypes_policy())
    made = {"whole": good, "empty": pb.Observation()}
    broken = {
        "many-axes": pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=[1] * 65, data=b"a"),
        "no-elements": pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[0, 2**62, 2**62]),
        "huge": pb.Tensor(dtype=pb.DATA_TYPE_FLOAT64, shape=[2**62] * 4),
        "endless-product": pb.Tensor(dtype=pb.DATA_TYPE_FLOAT64, shape=[2**62] * 300),
        "negative": pb.Tensor(dtype=pb.DATA_TYPE_INT32, shape=[-1, -1], data=bytes(4)),
        "short": pb.Tensor(dtype=pb.DATA_TYPE_INT64, shape=[2], data=bytes(15)),
        "unknown-dtype": pb.Tensor(dtype=77, shape=[1], data=b"a"),  # type: ignore[arg-type]
    }
    for name, tensor in broken.items():
        observation = made[name] = pb.Observation()
        observation.CopyFrom(good)
        observation.tensors["DATA_TYPE_UINT8"].CopyFrom(tensor)
    for name, value in (("nan", np.nan), ("infinity", -np.inf)):
        observation = made[name] = pb.Observation()
        observation.CopyFrom(good)
        array = np.full((2, 3), value, np.float32)
        observation.tensors["DATA_TYPE_FLOAT32"].CopyFrom(encode_tensor(array))
    return {name: message.SerializeToString(deterministic=True) for name, message in made.items()}
