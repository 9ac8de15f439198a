"""A bundle's ``health.onnx``: what the policy says of its own chunks. Its weights lie in ``policy.onnx``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.server.bundle import HEALTH_GRAPH_NAME, INSTRUCTION_INPUT, Bundle
from chunkcast.server.engine import GraphInputs
from chunkcast.server.errors import BundleError
from chunkcast.server.providers import cpu_session

ACTIONS_INPUT = "actions"
LOSS_OUTPUT = "denoising_loss"
EMBEDDING_OUTPUT = "embedding"


class HealthGraph:
    """Runs the graph on the CPU, whatever serves: it waits behind no robot's chunk, and none behind it.

    Args:
        bundle: verified, with a health graph.

    Raises:
        BundleError: the graph cannot be loaded, or does not run on the policy's observations and chunks.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._session: Any = cpu_session(bundle, 1, HEALTH_GRAPH_NAME)
        spec = bundle.spec
        self._keys = [entry.key for entry in spec.observations]
        self._keys += [INSTRUCTION_INPUT] if spec.instructions else []
        inputs = {each.name for each in self._session.get_inputs()}
        outputs = {each.name for each in self._session.get_outputs()}
        if inputs != {*self._keys, ACTIONS_INPUT} or not {LOSS_OUTPUT, EMBEDDING_OUTPUT} <= outputs:
            raise BundleError(
                f"{spec.name}: {HEALTH_GRAPH_NAME} has the inputs {sorted(inputs)} and outputs {sorted(outputs)}, "
                f"expected {sorted({*self._keys, ACTIONS_INPUT})} and {LOSS_OUTPUT}, {EMBEDDING_OUTPUT}"
            )

    def __call__(self, observations: Sequence[GraphInputs], actions: npt.NDArray[np.float32]) -> tuple[Any, Any]:
        """Denoising losses ``[B]`` and embeddings ``[B, W]`` of ``B`` observations and their chunks ``[B, H, A]``.

        Raises:
            BundleError: the graph does not run.
        """
        feeds = {key: np.stack([each[key] for each in observations]) for key in self._keys}
        try:
            losses, embeddings = self._session.run([LOSS_OUTPUT, EMBEDDING_OUTPUT], {**feeds, ACTIONS_INPUT: actions})
        except Exception as error:  # onnxruntime's exceptions have no public base class
            reason = str(error).splitlines()[0]
            raise BundleError(f"{HEALTH_GRAPH_NAME} does not run ({reason})") from None
        return losses, embeddings
