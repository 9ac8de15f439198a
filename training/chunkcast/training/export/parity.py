"""The check that stands between a graph and a bundle: its chunks equal those that the sampler gives in torch."""

from __future__ import annotations

from typing import Any

import torch

from chunkcast.training.errors import ExportError
from chunkcast.training.export.policy_graph import (
    INSTRUCTION_INPUT,
    NOISE_INPUT,
    PREFIX_ACTIONS_INPUT,
    PREFIX_LENGTH_INPUT,
    STATE_INPUT,
    image_inputs,
)
from chunkcast.training.policy import DiffusionPolicy, PolicyConfig
from chunkcast.training.sampling import sample_chunk

BATCH_SIZES = (1, 2, 7, 32)
TOLERANCE = 1e-3
"""Largest absolute difference, as a share of each action's own range. Rounding differs by some 1e-5."""
STATE_SPREAD = 2.0
"""States are drawn this much wider than in training, so that the clamps are compared too."""


def random_images(config: PolicyConfig, count: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Of each view uint8 ``[count, T, H, H, 3]``, with structure at every scale, as a scene has it and noise has
    not.
    """
    views = []
    for size in config.image_sizes:
        frames = torch.zeros(count * config.observation_steps, 3, size, size)
        cells = size
        while cells >= 1:
            coarse = torch.rand(len(frames), 3, cells, cells, generator=generator)
            frames += torch.nn.functional.interpolate(coarse, size=size)
            cells //= 4
        frames = (frames / frames.amax() * 255.0).to(torch.uint8).permute(0, 2, 3, 1)
        views.append(frames.reshape(count, config.observation_steps, size, size, 3).contiguous())
    return tuple(views)


def verify_parity(graph: bytes, policy: DiffusionPolicy, scheduler: Any, seed: int = 0) -> float:
    """Compare the graph with ``sample_chunk`` over random batches; returns the largest difference (action units).

    Raises:
        ExportError: the difference exceeds the tolerance.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(seed)
    config = policy.config
    action_range = policy.action_high - policy.action_low
    worst = worst_share = 0.0
    for size in BATCH_SIZES:
        spread = torch.randn(size, config.observation_steps, config.state_size, generator=generator)
        state = policy.state_mean + STATE_SPREAD * spread * policy.state_std
        told = torch.randn(size, config.instruction_size, generator=generator)
        instruction = policy.instruction_mean + policy.instruction_scale * told
        noise = torch.randn(size, config.horizon, config.action_size, generator=generator)
        unit = torch.rand(size, config.horizon, config.action_size, generator=generator)
        prefix_actions = policy.action_low + unit * action_range
        prefix_length = torch.randint(config.max_committed_steps + 1, (size,), generator=generator)
        images = random_images(config, size, generator)
        expected = sample_chunk(policy, scheduler, state, instruction, noise, prefix_actions, prefix_length, images)
        feeds = {
            STATE_INPUT: state.numpy(),
            INSTRUCTION_INPUT: instruction.numpy(),
            NOISE_INPUT: noise.numpy(),
            **{name: view.numpy() for name, view in zip(image_inputs(config), images, strict=True)},
        }
        if config.max_committed_steps:
            feeds |= {PREFIX_ACTIONS_INPUT: prefix_actions.numpy(), PREFIX_LENGTH_INPUT: prefix_length.numpy()}
        actual = torch.from_numpy(session.run(None, feeds)[0])
        difference = (actual - expected).abs()
        if not difference.isfinite().all():
            raise ExportError("the ONNX graph or the policy itself returns NaN or infinity; no bundle was written")
        worst = max(worst, float(difference.max()))
        worst_share = max(worst_share, float((difference / action_range).max()))
    if worst_share > TOLERANCE:
        raise ExportError(
            f"the ONNX graph differs from the sampler in torch by {worst_share:.3g} of an action's range, expected at "
            f"most {TOLERANCE:g}; no bundle was written"
        )
    return worst
