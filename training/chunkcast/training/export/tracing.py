"""From a torch module to an ONNX model, by torch's exporter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from onnxscript import optimizer
from torch import nn

WEIGHT_PREFIX = "policy."
"""Of a policy's weights and buffers in a graph: the graph's module holds it as ``policy``."""


def traced_graph(
    module: nn.Module,
    example: tuple[torch.Tensor | tuple[torch.Tensor, ...] | None, ...],
    input_names: list[str],
    output_names: list[str],
    further_axes: Mapping[int, Any] | None = None,
    without_batch: int = 0,
) -> Any:
    """``module`` as an ONNX ModelProto, its first axis dynamic, without a trace of where it was made.

    Args:
        example: inputs; one tensor given twice would be taken for one input, and ``None`` is none; a tuple is as many.
        further_axes: axis to ``torch.export.Dim`` of every input that has one, beside the first.
        without_batch: how many of the inputs, the last ones, have no dynamic axis.
    """
    batch = torch.export.Dim("batch")
    dynamic = len(example) - without_batch
    own = {0: batch, **(further_axes or {})}

    def axes_of(index: int, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(own for _ in value)
        return own if index < dynamic and value is not None else None

    axes = tuple(axes_of(index, value) for index, value in enumerate(example))
    # The exporter warns of its own use of deprecated functions, and logs that torchvision is absent.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            example,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=axes,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        optimizer.optimize_ir(program.model, should_fold=_keeps_weights)
    model = program.model_proto
    _strip_metadata(model)
    return model


def _keeps_weights(node: Any) -> bool | None:
    """Whether the exporter may compute ``node`` beforehand: not where that would replace a weight by something made of
    it. Weights keep their names and layout, so that a bundle can be trained on; the runtime does the same as it
    loads.
    """
    inputs = (value for value in node.inputs if value is not None)
    of_weights = any(value.is_initializer() and str(value.name).startswith(WEIGHT_PREFIX) for value in inputs)
    return False if of_weights else None


def _strip_metadata(model: Any) -> None:
    """Remove what the exporter notes of its source: paths of the exporting machine, stack traces, line numbers.

    The hash of a graph, which names a policy's version, then depends on what it computes alone.
    """
    graph = model.graph
    for annotated in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del annotated.metadata_props[:]
        annotated.doc_string = ""
