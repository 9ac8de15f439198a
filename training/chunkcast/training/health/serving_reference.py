"""What the server's health signals are measured against, fitted on traces of successful episodes.

Sizes: ``n`` requests of an episode, ``S`` floating-point elements of one observation, ``H`` horizon, ``A`` action size,
``W`` embedding size. The server computes the signals (``chunkcast.server.health.signals``); here is what they divide
by.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.training.errors import TrainingError
from chunkcast.training.export.bundle_writer import HEALTH_GRAPH_NAME
from chunkcast.v1 import health_pb2 as pb_health
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import state_entries
from chunkcast.v1.tensors import encode_tensor

MAX_OBSERVATIONS = 1500
"""Of an instruction: more are as close to each other as to anything new, and take longer to compare with."""
SELECTION_SEED = 20_243

MIN_SCALE = 0.02
"""As a share of an element's training range: what hardly varies must not make every rounding a novelty."""

MIN_AXIS = 0.01
MAX_AXES = 32
"""Principal axes of the embedding that are kept: of at least a hundredth of the first one's spread."""

RIDGE = 0.1
"""Of the response's least squares: elements that never vary leave them singular."""

MIN_DEVIATION = 0.02
"""Of a response, in units of its element's scale, for the same reason as ``MIN_SCALE``."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TracedEpisode:
    """An episode that ``chunkcast-sim --trace`` wrote.

    Attributes:
        instruction: what the policy was told.
        success: what came of it.
        step: int64 ``[n]``.
        observations: by key, ``[n, ...]``.
        actions: float32 ``[n, H, A]``.
    """

    instruction: str
    success: bool
    step: npt.NDArray[np.int64]
    observations: dict[str, npt.NDArray[Any]]
    actions: npt.NDArray[np.float32]


def read_traces(folder: Path) -> list[TracedEpisode]:
    """Every episode in ``folder``.

    Raises:
        TrainingError: a file is no trace.
    """
    episodes = []
    for file in sorted(folder.glob("*.npz")):
        try:
            # Opened here: numpy leaves a file open that turns out to be no archive.
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                observations = {
                    name.removeprefix("observation/"): arrays[name]
                    for name in arrays
                    if name.startswith("observation/")
                }
                success, instruction = bool(arrays["success"]), str(arrays["instruction"])
                episodes.append(TracedEpisode(instruction, success, arrays["step"], observations, arrays["actions"]))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise TrainingError(f"{file} is no trace of chunkcast-sim ({error}); play the episodes again") from None
    return episodes


def fit_reference(bundle: Path, spec: pb.PolicySpec, episodes: Sequence[TracedEpisode]) -> pb_health.HealthReference:
    """The reference of every instruction of the policy.

    Args:
        bundle: with the health graph that embeds observations.
        episodes: successful ones are taken, of every instruction.

    Raises:
        TrainingError: there is no health graph, or an instruction has fewer than two successful episodes.
    """
    if not (bundle / HEALTH_GRAPH_NAME).is_file():
        raise TrainingError(f"{bundle} has no {HEALTH_GRAPH_NAME}; export the policy again with this release")
    embed = _Embedding(bundle, spec)
    reference = pb_health.HealthReference()
    for task in [instruction.text for instruction in spec.instructions] or [""]:
        chosen = [each for each in episodes if each.instruction == task and each.success]
        if len(chosen) < 2:
            raise TrainingError(
                f"{len(chosen)} successful episodes of {task!r}, expected 2 or more: a policy that fails has no "
                "healthy episodes; take more --episodes or a better policy"
            )
        reference.tasks.append(_fit_task(task, spec, chosen, [embed(each) for each in chosen]))
    return reference


def _fit_task(
    task: str, spec: pb.PolicySpec, episodes: Sequence[TracedEpisode], embeddings: Sequence[Array]
) -> pb_health.TaskReference:
    states = [_states(spec, each) for each in episodes]
    everything = np.concatenate(states)
    scale = np.maximum(everything.std(0), np.maximum(MIN_SCALE * _training_spans(spec), np.finfo(np.float32).eps))
    scaled = everything / scale
    if len(scaled) > MAX_OBSERVATIONS:
        generator = np.random.default_rng(SELECTION_SEED)
        scaled = scaled[generator.choice(len(scaled), MAX_OBSERVATIONS, replace=False)]
    mean, axes = _principal_axes(np.concatenate(embeddings))
    response, deviation = _fit_response([each / scale for each in states], episodes)
    arrays = {
        "scale": scale,
        "observations": scaled,
        "embedding_mean": mean,
        "embedding_axes": axes,
        "response": response,
        "response_deviation": deviation,
    }
    return pb_health.TaskReference(
        task=task, **{name: encode_tensor(array.astype(np.float32)) for name, array in arrays.items()}
    )


def _states(spec: pb.PolicySpec, episode: TracedEpisode) -> Array:
    """Every request's floating-point elements, ``[n, S]``."""
    parts = [episode.observations[entry.key].reshape(len(episode.step), -1) for entry in state_entries(spec)]
    return np.concatenate(parts, axis=1).astype(np.float64)


def _training_spans(spec: pb.PolicySpec) -> Array:
    """Each floating-point element's training range, ``[S]``; 0 where the specification names none."""
    spans: list[float] = []
    for entry in state_entries(spec):
        size = math.prod(entry.shape)
        named = [each.training_max - each.training_min for each in entry.elements]
        spans += named if len(named) == size else [0.0] * size
    return np.array(spans)


def _principal_axes(embeddings: Array) -> tuple[Array, Array]:
    """Mean ``[W]`` and whitened principal axes ``[P, W]`` of ``embeddings [n, W]``."""
    mean = embeddings.mean(0)
    _, singular, axes = np.linalg.svd(embeddings - mean, full_matrices=False)
    spread = singular / np.sqrt(len(embeddings))
    kept = min(int((spread > MIN_AXIS * spread[0]).sum()), MAX_AXES)
    return mean, axes[:kept] / spread[:kept, None]


def _fit_response(states: Sequence[Array], episodes: Sequence[TracedEpisode]) -> tuple[Array, Array]:
    """The linear map ``[S, S + 2 A + 1]`` from a scaled observation and the actions after it to the change until the
    next request, and the standard deviation ``[S]`` of what it leaves unexplained.
    """
    features, changes = [], []
    for scaled, episode in zip(states, episodes, strict=True):
        for index, ticks in enumerate(np.diff(episode.step)):
            executed = episode.actions[index, :ticks]
            features.append(np.concatenate([scaled[index], executed.sum(0), executed[-1], [1.0]]))
            changes.append(scaled[index + 1] - scaled[index])
    if not features:
        raise TrainingError("no episode asked for two chunks; nothing can be learned of how the robot responds")
    x, y = np.array(features), np.array(changes)
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)
    return weights.T, np.maximum((y - x @ weights).std(0), MIN_DEVIATION)


class _Embedding:
    """Embeds an episode's observations with the bundle's health graph."""

    def __init__(self, bundle: Path, spec: pb.PolicySpec) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # By its path: its weights lie in the policy's graph beside it.
        file = str(bundle / HEALTH_GRAPH_NAME)
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._spec = spec
        self._instructions = {each.text: np.array(each.embedding, np.float32) for each in spec.instructions}

    def __call__(self, episode: TracedEpisode) -> Array:
        """``[n, W]``. A trace has no ticks between requests: for a policy that sees several, its current one stands in
        for those before it.
        """
        count, steps = len(episode.step), self._spec.observation_steps
        feeds: dict[str, Any] = {
            key: np.repeat(array[:, None], steps, axis=1) for key, array in episode.observations.items()
        }
        if self._instructions:
            feeds["instruction"] = np.repeat(self._instructions[episode.instruction][None], count, axis=0)
        feeds["actions"] = episode.actions
        embedding: Array = self._session.run(["embedding"], feeds)[0].astype(np.float64)
        return embedding
