"""Weights to begin with: those of a bundle, or of another run.

A bundle's graph names its weights as the policy's module does, so a shipped policy can be trained on: on further
demonstrations, of further tasks, or for longer. Its normalisation comes with it: the weights mean nothing without.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chunkcast.training.checkpoint import load_policy, read_checkpoint
from chunkcast.training.demonstrations.episodes import Demonstrations
from chunkcast.training.errors import CheckpointError
from chunkcast.training.export.bundle_writer import GRAPH_NAME, SPEC_NAME, read_spec
from chunkcast.training.export.specification import PREDICTION_TYPES, sampler_name
from chunkcast.training.export.tracing import WEIGHT_PREFIX
from chunkcast.training.files import sha256_of
from chunkcast.training.language.instructions import Instructions
from chunkcast.training.new_tasks import with_more_tasks
from chunkcast.training.policy import DiffusionPolicy, PolicyConfig

PRIVILEGED = "privileged."
"""The head that tells recorded states, by its weights' names."""


SIZES = ("denoiser", "width", "blocks", "embedding_size", "horizon", "observation_steps")
"""Of a network, by the flags that set them."""


@dataclass(frozen=True)
class Source:
    """What a network may begin with.

    Attributes:
        weights: by the module's names, buffers among them.
        process: sampler, prediction type and timesteps that they were trained for.
        told: how tasks are told: the encoder's SHA-256, or the names behind the one-hot entries.
        by_name: whether these are names.
        config: where it is known.
        implied: buffers that may be missing from the weights, since the rest says what they are.
        action_bounds: lower and upper.
    """

    weights: dict[str, torch.Tensor]
    process: tuple[Any, ...]
    told: tuple[str, ...]
    by_name: bool
    action_bounds: list[list[float]]
    config: PolicyConfig | None = None
    implied: frozenset[str] = frozenset()


def start_from(policy: DiffusionPolicy, instructions: Instructions, source: Path, last_checkpoint: Path) -> None:
    """Give ``policy`` the weights and the normalisation of ``source``.

    Args:
        instructions: of the new run.
        source: a bundle's folder, a run's folder, or a checkpoint.
        last_checkpoint: where a run's is, within its folder.

    Raises:
        CheckpointError: there are none, or they are of another network, process or of other tasks.
    """
    found = _source(source, last_checkpoint)
    again = "train with the settings that it was trained with"
    if found.config and (
        flags := [name for name in SIZES if getattr(found.config, name) != getattr(policy.config, name)]
    ):
        wanted = " ".join(f"--{name.replace('_', '-')} {getattr(found.config, name)}" for name in flags)
        raise CheckpointError(f"{source} is of another network; begin with its sizes: {wanted}")
    lacking = sorted(set(found.told) - set(instructions.tasks))
    if found.by_name and not instructions.encoder and lacking:
        raise CheckpointError(
            f"{source} knows {', '.join(lacking)}, which no demonstrations here are of; add some with --data or "
            "--rehearsal"
        )
    if not instructions.encoder and set(found.told) < set(instructions.tasks) and not policy.config.views:
        found = replace(
            found,
            weights=with_more_tasks(found.weights, found.told, policy, instructions.tasks),
            told=instructions.tasks,
        )
    own = policy.state_dict()
    # What was learned beside acting is not in a bundle, and not needed to act; and what is empty is nowhere.
    implied = found.implied | {name for name, value in own.items() if name.startswith(PRIVILEGED) or not value.numel()}
    if missing := sorted(set(own) - set(found.weights) - implied):
        raise CheckpointError(f"{source} is of another network: it has no {missing[0]}; {again}")
    for name, value in own.items():
        if name in found.weights and found.weights[name].shape != value.shape:
            raise CheckpointError(
                f"{source} is of another network: its {name} is {list(found.weights[name].shape)}, the new one's "
                f"{list(value.shape)}; {again}"
            )
    process, told = _process(policy.config), _told(instructions)
    if found.process != process:
        raise CheckpointError(f"{source} was trained for {found.process}, the new network is for {process}; {again}")
    if found.told != told:
        raise CheckpointError(f"{source} is told its tasks by {found.told}, the new network by {told}; {again}")
    if found.action_bounds != _bounds(policy):
        raise CheckpointError(
            f"{source} is of a robot with the action bounds {found.action_bounds}, the new one's are {_bounds(policy)}"
        )
    policy.load_state_dict({name: found.weights.get(name, value) for name, value in own.items()})


def within_its_bounds(demonstrations: Demonstrations, source: Path, last_checkpoint: Path) -> Demonstrations:
    """``demonstrations`` with the bounds of ``source``'s actions, which its weights are scaled by, where these do not
    have the robot's own.
    """
    low, high = _source(source, last_checkpoint).action_bounds if demonstrations.bounds_demonstrated else ((), ())
    return demonstrations.bounded(low, high) if len(low) == len(demonstrations.action_bounds[0]) else demonstrations


def _source(source: Path, last_checkpoint: Path) -> Source:
    return _of_bundle(source) if (source / SPEC_NAME).is_file() else _of_run(weights_file(source, last_checkpoint))


def weights_file(source: Path, last_checkpoint: Path) -> Path:
    """The file in ``source`` (a bundle, a run, a checkpoint) that its weights are in: what names them by its hash."""
    if (source / SPEC_NAME).is_file():
        return source / GRAPH_NAME
    return source if source.is_file() else source / last_checkpoint


def weights_sha256(source: Path | None, last_checkpoint: Path) -> str | None:
    """What a run's result depends on that begins with or learns from ``source``, wherever that lies."""
    return sha256_of(weights_file(source, last_checkpoint)) if source is not None else None


def _bounds(policy: DiffusionPolicy) -> list[list[float]]:
    return [policy.action_low.tolist(), policy.action_high.tolist()]


def _process(config: PolicyConfig) -> tuple[Any, ...]:
    return sampler_name(config), config.prediction_type, config.train_timesteps


def _told(instructions: Instructions) -> tuple[str, ...]:
    return (instructions.encoder.sha256,) if instructions.encoder else instructions.tasks


def _of_run(file: Path) -> Source:
    checkpoint = read_checkpoint(file)
    policy = load_policy(checkpoint)
    process, told = _process(checkpoint.policy_config), _told(checkpoint.instructions)
    by_name = checkpoint.instructions.encoder is None
    return Source(policy.state_dict(), process, told, by_name, _bounds(policy), checkpoint.policy_config)


def _of_bundle(bundle: Path) -> Source:
    import onnx
    from onnx import numpy_helper

    spec = read_spec(bundle)
    if spec.HasField("variant"):
        raise CheckpointError(
            f"{bundle} is in {spec.variant.precision}; begin with the run it was exported from, or a bundle in fp32"
        )
    expected = next((file.sha256 for file in spec.files if file.path == GRAPH_NAME), "")
    file = bundle / GRAPH_NAME
    if not file.is_file() or sha256_of(file) != expected:
        raise CheckpointError(f"{file} is missing or not the one that {SPEC_NAME} names; export the policy again")
    model = onnx.load(file, load_external_data=False)
    weights = {
        weight.name.removeprefix(WEIGHT_PREFIX): torch.from_numpy(np.array(numpy_helper.to_array(weight)))
        for weight in model.graph.initializer
        if weight.name.startswith(WEIGHT_PREFIX)
    }
    sampler, names = spec.sampler, {value: name for name, value in PREDICTION_TYPES.items()}
    process = (sampler.name, names.get(sampler.prediction_type), sampler.train_timesteps)
    encoder = spec.text_encoder.sha256
    told = (encoder,) if encoder else tuple(instruction.text for instruction in spec.instructions)
    # The exporter leaves out what computes nothing, such as a division by one, and computes with the bounds beforehand.
    implied = {"action_low", "action_high"} | (set() if encoder else {"instruction_mean", "instruction_scale"})
    elements = spec.action.elements
    bounds = [[float(np.float32(getattr(each, bound))) for each in elements] for bound in ("low", "high")]
    return Source(weights, process, told, not encoder, bounds, implied=frozenset(implied))
