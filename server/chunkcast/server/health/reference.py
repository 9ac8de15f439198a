"""What health signals are measured against, read from a bundle's ``health.binpb``.

Sizes: ``S`` floating-point elements of one tick's observation, ``A`` action size, ``N`` reference observations, ``W``
embedding size, ``P`` principal axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from chunkcast.server.errors import BundleError
from chunkcast.v1 import health_pb2 as pb_health
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import state_entries
from chunkcast.v1.tensors import TensorError, decode_tensor

MAX_REFERENCE_BYTES = 256 * 2**20
"""A thousand tasks of a thousand observations of 39 numbers take 160 MB."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """Of the successful episodes of one instruction; see health.proto.

    Attributes:
        scale: ``[S]``.
        observations: ``[N, S]``, divided by scale.
        squares: ``[N]``, their squared norms.
        embedding_mean, embedding_axes: ``[W]`` and ``[P, W]``.
        response: ``[S, S + 2 A + 1]``.
        response_deviation: ``[S]``.
    """

    scale: Array
    observations: Array
    squares: Array
    embedding_mean: Array
    embedding_axes: Array
    response: Array
    response_deviation: Array


def read_references(spec: pb.PolicySpec, content: bytes) -> dict[str, Reference]:
    """Instruction to reference; the empty instruction for a policy without any.

    Args:
        spec: of the same bundle.
        content: of its ``health.binpb``.

    Raises:
        BundleError: the content is none, of other instructions, or its sizes are not the policy's.
    """
    if len(content) > MAX_REFERENCE_BYTES:
        raise BundleError(f"{spec.name}: health.binpb has {len(content)} bytes, expected at most {MAX_REFERENCE_BYTES}")
    try:
        message = pb_health.HealthReference.FromString(content)
    except DecodeError:
        raise BundleError(f"{spec.name}: health.binpb is no HealthReference; run chunkcast-health monitor") from None
    tasks = [instruction.text for instruction in spec.instructions] or [""]
    if [each.task for each in message.tasks] != tasks:
        raise BundleError(
            f"{spec.name}: health.binpb is of {len(message.tasks)} other instructions than the policy's {len(tasks)}; "
            "run chunkcast-health monitor again"
        )
    return {each.task: _reference(spec, each) for each in message.tasks}


def _reference(spec: pb.PolicySpec, message: pb_health.TaskReference) -> Reference:
    size = sum(math.prod(entry.shape) for entry in state_entries(spec))
    actions = len(spec.action.elements)

    def array(name: str, *shape: int | None) -> Array:
        """A finite float32 array of ``shape``, where ``None`` is any size above 0."""
        problem = f"{spec.name}: health.binpb, {name} of {message.task!r}"
        try:
            values: npt.NDArray[Any] = decode_tensor(getattr(message, name))
        except TensorError as error:
            raise BundleError(f"{problem}: {error}; run chunkcast-health monitor again") from None
        fits = len(values.shape) == len(shape) and all(
            have > 0 and want in (None, have) for have, want in zip(values.shape, shape, strict=True)
        )
        if not fits or values.dtype != np.float32 or not np.isfinite(values).all():
            wanted = ["any" if want is None else want for want in shape]
            raise BundleError(
                f"{problem} is {values.dtype} {list(values.shape)}, expected finite float32 {wanted}; run "
                "chunkcast-health monitor again"
            )
        return values

    observations = array("observations", None, size)
    with np.errstate(over="ignore"):
        squares = (observations**2).sum(1)
    if not np.isfinite(squares).all():
        raise BundleError(
            f"{spec.name}: health.binpb, observations of {message.task!r} are too large to square; run "
            "chunkcast-health monitor again"
        )
    mean = array("embedding_mean", None)
    reference = Reference(
        scale=array("scale", size),
        observations=observations,
        squares=squares,
        embedding_mean=mean,
        embedding_axes=array("embedding_axes", None, len(mean)),
        response=array("response", size, size + 2 * actions + 1),
        response_deviation=array("response_deviation", size),
    )
    if not (reference.scale > 0).all() or not (reference.response_deviation > 0).all():
        raise BundleError(f"{spec.name}: health.binpb divides by zero; run chunkcast-health monitor again")
    return reference
