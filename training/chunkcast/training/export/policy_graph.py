"""The graph that is exported: observations, instruction and initial noise in, an action chunk out.

Normalisation, the sampler's unrolled loop and the final clamp are inside. The loop is unrolled because an ONNX ``Loop``
would rule out CUDA graphs. Inputs are found by name: the graph of a policy that was trained to continue committed
actions has two more, ``prefix_actions`` and ``prefix_length``; the loop keeps those rows at every step.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from chunkcast.training.export.sampler_steps import sampler_evaluations
from chunkcast.training.export.tracing import traced_graph
from chunkcast.training.policy import DiffusionPolicy

STATE_INPUT = "observation.state"
INSTRUCTION_INPUT = "instruction"
NOISE_INPUT = "noise"
PREFIX_ACTIONS_INPUT = "prefix_actions"
PREFIX_LENGTH_INPUT = "prefix_length"
ACTIONS_OUTPUT = "actions"


class PolicyGraph(nn.Module):
    """A sampler's evaluations, unrolled: deterministic DDIM (Song et al. 2021, eq. 12 with sigma = 0), or MIP.

    Args:
        policy: normaliser and denoiser.
        scheduler: from ``sampling_scheduler``.
    """

    def __init__(self, policy: DiffusionPolicy, scheduler: Any) -> None:
        super().__init__()
        self.policy, self.initial = policy, float(scheduler.init_noise_sigma)
        self.evaluations = sampler_evaluations(policy.config, scheduler)
        for index, evaluation in enumerate(self.evaluations):
            self.register_buffer(f"timestep_{index}", torch.tensor([evaluation.timestep]))

    def forward(
        self,
        state: torch.Tensor,
        instruction: torch.Tensor,
        noise: torch.Tensor,
        prefix_actions: torch.Tensor | None = None,
        prefix_length: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``state [B, T, S]``, ``instruction [B, E]``, ``noise [B, H, A]`` -> actions ``[B, H, A]``, physical units.

        The first ``prefix_length`` (int64 ``[B]``) rows of ``prefix_actions [B, H, A]`` are the answer's first rows.
        """
        embedding = self.policy.encode(state, instruction)
        if prefix_actions is None or prefix_length is None:
            given, prefix, committed = None, noise, torch.zeros_like(noise[..., 0])
        else:
            committed = self.policy.committed_rows(prefix_length)
            given = committed[..., None] > 0
            prefix = self.policy.normalize_actions(prefix_actions).clamp(-1.0, 1.0)

        def keep_prefix(chunk: torch.Tensor) -> torch.Tensor:
            return chunk if given is None else torch.where(given, prefix, chunk)

        chunk = keep_prefix(noise * self.initial)
        for index, evaluation in enumerate(self.evaluations):
            timestep = cast(torch.Tensor, getattr(self, f"timestep_{index}"))
            prediction = self.policy(chunk, timestep, embedding, committed)
            chunk = keep_prefix(evaluation.next_chunk(prediction, chunk))
        return self.policy.denormalize_actions(chunk)


def onnx_graph(policy: DiffusionPolicy, scheduler: Any) -> bytes:
    """The serialised ONNX model of ``PolicyGraph``, with a dynamic batch axis and weights inside."""
    config = policy.config
    example = [
        torch.zeros(2, config.observation_steps, config.state_size),
        torch.zeros(2, config.instruction_size),
        torch.zeros(2, config.horizon, config.action_size),
    ]
    input_names = [STATE_INPUT, INSTRUCTION_INPUT, NOISE_INPUT]
    if config.max_committed_steps:
        example += [torch.zeros(2, config.horizon, config.action_size), torch.zeros(2, dtype=torch.int64)]
        input_names += [PREFIX_ACTIONS_INPUT, PREFIX_LENGTH_INPUT]
    model = traced_graph(PolicyGraph(policy, scheduler).eval(), tuple(example), input_names, [ACTIONS_OUTPUT])
    return bytes(model.SerializeToString(deterministic=True))
