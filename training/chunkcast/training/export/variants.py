"""A bundle's graph in smaller numbers: int8 image encoders for processors, fp16 for GPUs.

A variant is compared with the graph in float32 on demonstrated observations, and is not written if its actions differ
by more than ``BOUND``. That bounds what a robot would notice in one chunk; whether it succeeds as often is measured
through the server, as of any policy.
"""

from __future__ import annotations

import io
import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.training.choices import Precision
from chunkcast.training.errors import ExportError
from chunkcast.training.export.policy_graph import ACTIONS_OUTPUT

BOUND = 0.01
"""Root mean square of the actions' difference, as a share of each action's range. Most of it comes from a few chunks in
which a sampler of several evaluations takes another of two ways. At 2.2 % a policy that had grasped 39 of 40 pucks
grasped 30."""

CALIBRATION_FRAMES = 256
COMPARED_FRAMES = 256

QUANTISED_WEIGHTS = re.compile(r"policy\.image_encoders\.(\d+)\.(halvings|stages\.[12]|backbone)\.")
"""What these weights multiply is computed in int8: most of a chunk's time. The first stage alone would make three
quarters of all the difference; and what is read off (where keypoints lie, to a fraction of a cell) and what decides the
actions are not either."""

EARLIEST_STAGE = "stages.1"
"""The first of them: what is left in float32, view by view, where all of them in int8 differ by too much."""

LARGE = 1024
"""Weights that are stored in float16, where they are computed with in float32: half the bytes for their last digits."""

Feeds = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Variant:
    """A graph in smaller numbers, and how far its actions are from the original's.

    Attributes:
        graph: the serialised ONNX model.
        difference: root mean square, as a share of the actions' range.
        observations: that were compared.
        whole_views: image encoders whose earliest quantised stage stayed in float32.
    """

    graph: bytes
    difference: float
    observations: int
    whole_views: frozenset[str]


def smaller(
    graph: bytes, precision: Precision, calibration: Sequence[Feeds], whole_views: frozenset[str] = frozenset()
) -> bytes:
    """``graph`` in ``precision``.

    Args:
        calibration: observations that the ranges of activations are taken from, as the graph's inputs.
        whole_views: numbers of the image encoders whose earliest quantised stage stays in float32.

    Raises:
        ExportError: there is nothing in it that could be smaller.
    """
    return _half(graph) if precision == "fp16" else _quantised(graph, calibration, whole_views)


def near_variant(
    graph: bytes,
    precision: Precision,
    calibration: Sequence[Feeds],
    observations: Sequence[Feeds],
    span: npt.NDArray[np.float32],
) -> Variant:
    """``graph`` in ``precision``, with actions within ``BOUND`` of its own.

    In int8, as many views as that takes are left partly in float32: each time the one without which they differ least.

    Args:
        calibration: as in ``smaller``.
        observations: to compare by, other ones than it is calibrated on.
        span: ``[A]``, each action's range.

    Raises:
        ExportError: they differ by more in any case, or there is nothing in it that could be smaller.
    """
    original = _all_actions(graph, observations)

    def variant(whole_views: frozenset[str]) -> Variant:
        content = smaller(graph, precision, calibration, whole_views)
        difference = float(np.sqrt(np.mean(((_all_actions(content, observations) - original) / span) ** 2)))
        return Variant(content, difference, len(original), whole_views)

    views = _views(graph) if precision == "int8" else frozenset()
    found = variant(frozenset())
    while not found.difference <= BOUND and (rest := views - found.whole_views):
        whole = found.whole_views
        found = min((variant(whole | {view}) for view in sorted(rest)), key=lambda each: each.difference)
    if not found.difference <= BOUND:
        raise ExportError(
            f"the {precision} graph's actions differ from those in float32 by {found.difference:.4f} of their range "
            f"(root mean square of {found.observations} demonstrated observations), expected at most {BOUND:g}; no "
            "bundle was written"
        )
    return found


def _views(graph: bytes) -> frozenset[str]:
    import onnx

    matches = (QUANTISED_WEIGHTS.match(each.name) for each in onnx.load_from_string(graph).graph.initializer)
    return frozenset(match[1] for match in matches if match and match[2] == EARLIEST_STAGE)


def _all_actions(graph: bytes, observations: Sequence[Feeds]) -> npt.NDArray[np.float32]:
    session = _session(graph)
    return np.concatenate([_actions(session, feeds) for feeds in observations])


def _actions(session: Any, feeds: Feeds) -> npt.NDArray[np.float32]:
    names = [each.name for each in session.get_inputs()]
    actions: npt.NDArray[np.float32] = session.run([ACTIONS_OUTPUT], {name: feeds[name] for name in names})[0]
    return actions


def _half(graph: bytes) -> bytes:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    # Inputs and outputs stay what the specification says they are.
    model = convert_float_to_float16(onnx.load_from_string(graph), keep_io_types=True)
    return bytes(model.SerializeToString(deterministic=True))


def _quantised(graph: bytes, calibration: Sequence[Feeds], whole_views: frozenset[str]) -> bytes:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    model = onnx.load_from_string(graph)
    weights = {
        each.name
        for each in model.graph.initializer
        if (match := QUANTISED_WEIGHTS.match(each.name))
        and not (match[1] in whole_views and match[2] == EARLIEST_STAGE)
    }
    nodes = [
        node.name
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and weights.intersection(node.input)
    ]
    if not nodes:
        raise ExportError("the policy has no image encoder, which alone is computed in int8; leave --precision out")

    inputs = [each.name for each in model.graph.input]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds: Iterator[Feeds] = iter(calibration)

        def get_next(self) -> Feeds | None:
            feeds = next(self._feeds, None)
            return feeds and {name: feeds[name] for name in inputs}

    with tempfile.TemporaryDirectory() as folder:
        file, smaller_file = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        file.write_bytes(graph)
        with _quiet():
            quantize_static(
                file,
                smaller_file,
                Reader(),
                nodes_to_quantize=nodes,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.Percentile,
                extra_options={"CalibPercentile": 99.99},
            )
        content = onnx.load(smaller_file)
    _store_in_half(content)
    return bytes(content.SerializeToString(deterministic=True))


def _store_in_half(model: Any) -> None:
    """Keep the float32 weights of ``model`` as float16; a session casts them back once, when it is made."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if weight.data_type != TensorProto.FLOAT or values.size < LARGE:
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(helper.make_node("Cast", [weight.name], [name], name=f"{name}_whole", to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])


@contextmanager
def _quiet() -> Iterator[None]:
    """Onnxruntime's quantiser prints its settings, and advises what torch's exporter has done already."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _session(graph: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
