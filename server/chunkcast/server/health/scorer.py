"""The health signals of answered observations, several at once.

Does not know: averages, thresholds, threads, gRPC. Sizes as in ``signals``; ``B`` is the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from chunkcast.server.bundle import HEALTH_GRAPH_NAME, HEALTH_REFERENCE_NAME, Bundle
from chunkcast.server.engine import GraphInputs, expected_inputs
from chunkcast.server.errors import BundleError
from chunkcast.server.health import signals
from chunkcast.server.health.graph import HealthGraph
from chunkcast.server.health.judgement import Scores
from chunkcast.server.health.reference import Reference, read_references
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import state_entries

AskGraph = Callable[[Sequence[GraphInputs], npt.NDArray[np.float32]], tuple[Any, Any]]
"""Observations and their chunks ``[B, H, A]`` to denoising losses ``[B]`` and embeddings ``[B, W]``."""


class Sample(NamedTuple):
    """An observation that was answered.

    Attributes:
        episode_id, step, instruction: of it.
        inputs: of the graph, without the batch axis.
        actions: the chunk ``[H, A]``, physical units.
        executed: what was executed before it, ``[n, A]``, as the robot says; ``None``: it said nothing.
    """

    episode_id: str
    step: int
    instruction: str
    inputs: GraphInputs
    actions: npt.NDArray[np.float32]
    executed: npt.NDArray[np.float32] | None = None


class Pair(NamedTuple):
    """A sample, and the one before it of the same episode, if there is one."""

    current: Sample
    previous: Sample | None


class Scorer:
    """One policy's signals.

    Args:
        spec: the policy's; names the training ranges and the actions' bounds.
        references: of its instructions; empty if there are none.
        graph: its health graph, or ``None``.
    """

    def __init__(self, spec: pb.PolicySpec, references: Mapping[str, Reference], graph: AskGraph | None) -> None:
        self._spec, self._references, self._graph = spec, references, graph
        self._entries = state_entries(spec)
        self._ticks = spec.serving_health.execute_steps or spec.action.execute_steps
        self._span = np.array([each.high - each.low for each in spec.action.elements], np.float32)
        elements = [each for entry in self._entries for each in entry.elements]
        complete = all(len(entry.elements) == math.prod(entry.shape) for entry in self._entries)
        ranges = [(each.training_min, each.training_max) for each in elements] if complete else []
        self._low, self._high = np.array(ranges, np.float32).reshape(-1, 2).T
        self._ranged = bool((self._low < self._high).any())

    def score(self, pairs: Sequence[Pair]) -> list[Scores]:
        """Each pair's scores, of the signals that can be had."""
        scores = [self._own(pair) for pair in pairs]
        if self._graph is not None:
            current = [pair.current for pair in pairs]
            losses, embeddings = self._graph([each.inputs for each in current], np.stack([s.actions for s in current]))
            for each, own, loss, embedding in zip(current, scores, losses, embeddings, strict=True):
                own[pb.HEALTH_SIGNAL_DENOISING_LOSS] = float(loss)
                if reference := self._references.get(each.instruction):
                    own[pb.HEALTH_SIGNAL_EMBEDDING_NOVELTY] = signals.embedding_novelty(embedding, reference)
        return scores

    def warm_up(self) -> None:
        """Run the graph once: an embedding of another size than the references' is found now.

        Raises:
            BundleError: the graph does not run, or its embedding does not fit.
        """
        if self._graph is None:
            return
        blank = {name: np.zeros(shape, dtype) for name, (shape, dtype) in expected_inputs(self._spec).items()}
        chunk = np.zeros((1, self._spec.action.horizon, len(self._span)), np.float32)
        _, embeddings = self._graph([blank], chunk)
        size = np.shape(embeddings)[-1]
        for task, reference in self._references.items():
            if len(reference.embedding_mean) != size:
                raise BundleError(
                    f"{self._spec.name}: the embedding has {size} numbers, health.binpb of {task!r} expects "
                    f"{len(reference.embedding_mean)}; run chunkcast-health monitor again"
                )

    def _own(self, pair: Pair) -> Scores:
        """What needs no network."""
        current, previous = pair
        state, reference = self._state(current), self._references.get(current.instruction)
        scores: Scores = {}
        if self._ranged:
            scores[pb.HEALTH_SIGNAL_RANGE] = signals.range_exceedance(state, self._low, self._high)
        if reference:
            scores[pb.HEALTH_SIGNAL_NOVELTY] = signals.novelty(state, reference)
        if previous is None:
            return scores
        ticks = current.step - previous.step
        # The references are of requests so far apart; of others they say nothing.
        if ticks != self._ticks:
            return scores
        apart = signals.disagreement(previous.actions, current.actions, ticks, self._span)
        if apart is not None:
            scores[pb.HEALTH_SIGNAL_DISAGREEMENT] = apart
        executed = previous.actions[:ticks] if current.executed is None else current.executed[-ticks:]
        if reference and len(executed) == ticks:
            scores[pb.HEALTH_SIGNAL_RESPONSE] = signals.response(self._state(previous), state, executed, reference)
        return scores

    def _state(self, sample: Sample) -> npt.NDArray[np.float32]:
        """The newest tick's floating-point elements ``[S]``."""
        parts = [np.ravel(sample.inputs[entry.key][-1]) for entry in self._entries]
        return np.concatenate(parts).astype(np.float32, copy=False) if parts else np.zeros(0, np.float32)


def read_scorer(bundle: Bundle) -> Scorer:
    """A verified bundle's signals: all of them, or those that its files allow.

    Raises:
        BundleError: its health graph or reference cannot be used.
    """
    content = bundle.files.get(HEALTH_REFERENCE_NAME)
    references = read_references(bundle.spec, content) if content is not None else {}
    graph = HealthGraph(bundle) if HEALTH_GRAPH_NAME in bundle.files else None
    scorer = Scorer(bundle.spec, references, graph)
    scorer.warm_up()
    return scorer
