"""One traced turn of a loop, repeated in the graph: each turn's operations anew, its constants, and shared weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Loop:
    """The names by which a turn is found in its graph.

    Attributes:
        given: input, what a turn begins with.
        result: input, what the operations after the loop begin with.
        first: output, what the first turn begins with.
        next: output, what the following turn begins with.
        last: output, what the operations after the loop begin with.
    """

    given: str
    result: str
    first: str
    next: str
    last: str


def unrolled(model: Any, loop: Loop, turns: Sequence[Mapping[str, torch.Tensor]]) -> Any:
    """The ONNX ModelProto that computes one turn after the other, with the inputs that it needs.

    Args:
        model: an ONNX ModelProto, of one turn and what is before and after it; nodes are in topological order.
        loop: its names.
        turns: name of a further input to its value, for each turn.
    """
    import onnx
    from onnx import numpy_helper

    turning, after = {loop.given, *turns[0]}, {loop.result}
    before: list[Any] = []
    turn: list[Any] = []
    end: list[Any] = []
    for node in model.graph.node:
        if turning.intersection(node.input):
            turn.append(node)
            turning.update(node.output)
        elif after.intersection(node.input):
            end.append(node)
            after.update(node.output)
        else:
            before.append(node)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for field in (graph.node, graph.value_info, graph.input, graph.output):
        del field[:]
    graph.node.extend(before)
    own = {name for node in turn for name in node.output}
    chunk = loop.first
    for index, values in enumerate(turns):
        prefix = f"turn_{index}/"
        for name, value in values.items():
            graph.initializer.append(numpy_helper.from_array(value.numpy(), prefix + name))
        renamed = {name: prefix + name for name in (*own, *values)} | {loop.given: chunk}
        graph.node.extend(_renamed(node, renamed, prefix) for node in turn)
        chunk, last = renamed[loop.next], renamed[loop.last]
    graph.node.extend(_renamed(node, {loop.result: last}, "") for node in end)
    graph.output.extend(each for each in model.graph.output if each.name in after)
    used = _leave_out_what_leads_nowhere(graph)
    graph.input.extend(each for each in model.graph.input if each.name in used)
    return copy


def _leave_out_what_leads_nowhere(graph: Any) -> set[str]:
    """Remove nodes and constants that no output depends on; the names of what is left."""
    used = {each.name for each in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            nodes.append(node)
            used.update(node.input)
    initializers = [each for each in graph.initializer if each.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(initializers)
    return used


def _renamed(node: Any, names: Mapping[str, str], prefix: str) -> Any:
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = prefix + node.name
    for field in (copy.input, copy.output):
        field[:] = [names.get(name, name) for name in field]
    return copy
