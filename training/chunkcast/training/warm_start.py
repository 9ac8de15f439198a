"""Weights to begin with: those of a bundle, or of another run.

A bundle's graph names its weights as the policy's module does, so a shipped policy can be trained on: on further
demonstrations, or for longer. Its normalisation comes with it, since the weights mean nothing without.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from chunkcast.training.checkpoint import load_policy, read_checkpoint
from chunkcast.training.errors import CheckpointError
from chunkcast.training.export.bundle_writer import GRAPH_NAME, SPEC_NAME, read_spec
from chunkcast.training.files import sha256_of
from chunkcast.training.policy import DiffusionPolicy

GRAPH_PREFIX = "policy."
"""Of a weight's name in the exported graph."""


def start_from(policy: DiffusionPolicy, source: Path, last_checkpoint: Path) -> None:
    """Give ``policy`` the weights and the normalisation of ``source``.

    Args:
        source: a bundle's folder, a run's folder, or a checkpoint.
        last_checkpoint: where a run's is, within its folder.

    Raises:
        CheckpointError: there are none, or they are of another network.
    """
    if (source / SPEC_NAME).is_file():
        weights = _bundle_weights(source)
    else:
        file = source if source.is_file() else source / last_checkpoint
        weights = load_policy(read_checkpoint(file)).state_dict()
    own = policy.state_dict()
    parameters = {name for name, _ in policy.named_parameters()}
    # A constant that the exporter could compute with is no longer in a graph; the demonstrations' own stands for it.
    if missing := sorted(parameters - set(weights)):
        raise CheckpointError(
            f"{source} is of another network: it has no {missing[0]}; train with the settings that it was trained with"
        )
    for name in set(weights) & set(own):
        if weights[name].shape != own[name].shape:
            raise CheckpointError(
                f"{source} is of another network: its {name} is {list(weights[name].shape)}, the new one's "
                f"{list(own[name].shape)}; train with the settings that it was trained with"
            )
    policy.load_state_dict({**own, **{name: value for name, value in weights.items() if name in own}})


def _bundle_weights(bundle: Path) -> dict[str, torch.Tensor]:
    import onnx
    from onnx import numpy_helper

    spec = read_spec(bundle)
    expected = next((file.sha256 for file in spec.files if file.path == GRAPH_NAME), "")
    file = bundle / GRAPH_NAME
    if not file.is_file() or sha256_of(file) != expected:
        raise CheckpointError(f"{file} is missing or not the one that {SPEC_NAME} names; export the policy again")
    model = onnx.load(file, load_external_data=False)
    return {
        weight.name.removeprefix(GRAPH_PREFIX): torch.from_numpy(np.array(numpy_helper.to_array(weight)))
        for weight in model.graph.initializer
        if weight.name.startswith(GRAPH_PREFIX)
    }
