"""The second, small graph of a bundle: what the server asks the policy about its own chunks, beside serving them.

It returns how well the policy restores an emitted chunk from noise, at fixed timesteps with fixed noise, and the
encoder's embedding of the observation. Its weights are those of ``policy.onnx`` and stay there: ``health.onnx`` names
their places in that file (ONNX external data), so that it is small and cannot differ from the policy that is served.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from chunkcast.training.errors import ExportError
from chunkcast.training.export.parity import random_images
from chunkcast.training.export.policy_graph import (
    ACTIONS_INPUT,
    INSTRUCTION_INPUT,
    OBSERVED,
    STATE_INPUT,
    image_inputs,
    observed_example,
)
from chunkcast.training.export.tracing import WEIGHT_PREFIX, traced_graph
from chunkcast.training.policy import DiffusionPolicy

LOSS_OUTPUT = "denoising_loss"
EMBEDDING_OUTPUT = "embedding"

TIMESTEP_SHARES = (0.2, 0.4, 0.6, 0.8)
"""Of the process, where a chunk is noised and restored. Below, any network restores it; above, little is left."""
NOISE_SEED = 20_242
SHARED_BYTES = 1024
"""Smaller constants stay in the graph itself."""
PARITY_BATCH = 7
TOLERANCE = 1e-3
"""Largest difference from torch, as a share of one plus the value."""


class HealthGraph(nn.Module):
    """What a policy sees (as ``OneEvaluation`` has it) and ``actions [B, H, A]`` -> loss ``[B]``, embedding ``[B, W]``.

    The loss is the objective's: the squared error of what the policy predicts (clean chunk, noise or velocity), the
    mean over the chunk and the timesteps (as Diff-DAgger's, Lee et al. 2024, arXiv:2410.14868).

    Args:
        policy: normaliser and denoiser.
        noise_scheduler: diffusers' training scheduler of the policy.
    """

    timesteps: torch.Tensor
    signal_rate: torch.Tensor
    noise_rate: torch.Tensor
    noise: torch.Tensor

    def __init__(self, policy: DiffusionPolicy, noise_scheduler: Any) -> None:
        super().__init__()
        self.policy = policy
        config = policy.config
        timesteps = torch.tensor([int(share * config.train_timesteps) for share in TIMESTEP_SHARES])
        one, nothing = torch.ones(len(timesteps), 1, 1), torch.zeros(len(timesteps), 1, 1)
        generator = torch.Generator().manual_seed(NOISE_SEED)
        noise = torch.randn(len(timesteps), config.horizon, config.action_size, generator=generator)
        self.register_buffer("timesteps", timesteps)
        self.register_buffer("signal_rate", noise_scheduler.add_noise(one, nothing, timesteps))  # [K, 1, 1]
        self.register_buffer("noise_rate", noise_scheduler.add_noise(nothing, one, timesteps))
        self.register_buffer("noise", noise)  # [K, H, A]

    def forward(
        self,
        state: torch.Tensor,
        instruction: torch.Tensor,
        images: tuple[torch.Tensor, ...] | None,
        actions: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        batch, count = state.shape[0], len(TIMESTEP_SHARES)
        encoded = self.policy.encode(state, instruction, images or ())  # [B, W]
        clean = self.policy.normalize_actions(actions)[:, None]  # [B, 1, H, A]
        noisy = (self.signal_rate * clean + self.noise_rate * self.noise).flatten(0, 1)  # [B*K, H, A]
        prediction = self.policy(
            noisy,
            self.timesteps[None].expand(batch, count).flatten(),
            encoded[:, None].expand(batch, count, encoded.shape[-1]).flatten(0, 1),
            torch.zeros_like(noisy[..., 0]),
        )
        prediction = prediction.unflatten(0, (batch, count))  # [B, K, H, A]
        match self.policy.config.prediction_type:
            case "sample":
                target = clean
            case "epsilon":
                target = self.noise[None]
            case "v_prediction":
                target = self.signal_rate * self.noise - self.noise_rate * clean
        loss = ((prediction - target) ** 2).mean((1, 2, 3))
        return loss, encoded


def health_graph(
    policy: DiffusionPolicy,
    noise_scheduler: Any,
    policy_graph: bytes,
    policy_file: str,
    smaller: Callable[[bytes], bytes] | None = None,
) -> bytes:
    """The serialised ONNX model, whose weights lie in ``policy_graph``.

    Args:
        policy_graph: the content of the bundle's policy graph.
        policy_file: its name in the bundle.
        smaller: makes of the graph in float32 what ``policy_graph`` was made of its own.

    Raises:
        ExportError: a weight is not in ``policy_graph``, or the graph differs from torch.
    """
    import onnx

    config = policy.config
    module = HealthGraph(policy, noise_scheduler).eval()
    example = (*observed_example(config).values(), torch.zeros(2, config.horizon, config.action_size))
    names = [*OBSERVED, *image_inputs(config), ACTIONS_INPUT]
    model = traced_graph(module, example, names, [LOSS_OUTPUT, EMBEDDING_OUTPUT])
    if smaller:
        model = onnx.load_from_string(smaller(bytes(model.SerializeToString())))
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) < SHARED_BYTES or not tensor.name.startswith(WEIGHT_PREFIX):
            continue
        if tensor.raw_data not in policy_graph:
            raise ExportError(f"{tensor.name} is not in {policy_file} as it is here: it was made of another policy")
        _share(tensor, policy_graph, policy_file)
    graph = bytes(model.SerializeToString(deterministic=True))
    _verify(graph, module, policy_graph, policy_file, tolerance=math.inf if smaller else TOLERANCE)
    return graph


def _share(tensor: Any, policy_graph: bytes, policy_file: str) -> None:
    """Let ``tensor`` name its bytes in the policy's graph instead of holding them."""
    from onnx import TensorProto

    offset, size = policy_graph.index(tensor.raw_data), len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", policy_file), ("offset", offset), ("length", size)):
        tensor.external_data.add(key=key, value=str(value))


def _verify(graph: bytes, module: HealthGraph, policy_graph: bytes, policy_file: str, *, tolerance: float) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_external_initializers_from_files_in_memory([policy_file], [policy_graph], [len(policy_graph)])
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    policy, config = module.policy, module.policy.config
    state = torch.randn(PARITY_BATCH, config.observation_steps, config.state_size, generator=generator)
    state = policy.state_mean + state * policy.state_std
    told = torch.randn(PARITY_BATCH, config.instruction_size, generator=generator)
    instruction = policy.instruction_mean + policy.instruction_scale * told
    unit = torch.rand(PARITY_BATCH, config.horizon, config.action_size, generator=generator)
    actions = policy.action_low + unit * (policy.action_high - policy.action_low)
    images = random_images(config, PARITY_BATCH, generator)
    with torch.no_grad():
        expected = [each.numpy() for each in module(state, instruction, images, actions)]
    feeds = {STATE_INPUT: state.numpy(), INSTRUCTION_INPUT: instruction.numpy(), ACTIONS_INPUT: actions.numpy()}
    feeds |= {name: view.numpy() for name, view in zip(image_inputs(config), images, strict=True)}
    for name, mine, theirs in zip(
        (LOSS_OUTPUT, EMBEDDING_OUTPUT), session.run([LOSS_OUTPUT, EMBEDDING_OUTPUT], feeds), expected, strict=True
    ):
        difference = float(np.max(np.abs(mine - theirs) / (1.0 + np.abs(theirs))))
        if not (difference <= tolerance and math.isfinite(difference)):
            raise ExportError(
                f"the health graph's {name} differs from torch by {difference:.3g}, expected at most {tolerance:g}; no "
                "bundle was written"
            )
