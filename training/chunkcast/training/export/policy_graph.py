"""The graph that is exported: observations, instruction and initial noise in, an action chunk out.

Normalisation, the sampler's unrolled loop and the final clamp are inside. The loop is unrolled because an ONNX ``Loop``
would rule out CUDA graphs. Inputs are found by name: the graph of a policy that was trained to continue committed
actions has two more, ``prefix_actions`` and ``prefix_length``; the loop keeps those rows at every step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from chunkcast.simulation.policy_cameras import IMAGE_PREFIX
from chunkcast.training.export.sampler_steps import Evaluation, next_chunk, sampler_evaluations
from chunkcast.training.export.tracing import traced_graph
from chunkcast.training.export.unrolling import Loop, unrolled
from chunkcast.training.policy import DiffusionPolicy, PolicyConfig

STATE_INPUT = "observation.state"
INSTRUCTION_INPUT = "instruction"
IMAGES = "images"
"""Stands for an input of each view, whose names are from ``image_inputs``."""
OBSERVED = (STATE_INPUT, INSTRUCTION_INPUT)
NOISE_INPUT = "noise"
PREFIX_ACTIONS_INPUT = "prefix_actions"
PREFIX_LENGTH_INPUT = "prefix_length"
ACTIONS_OUTPUT = "actions"
ACTIONS_INPUT = "actions"
"""Of the health graph, which is asked about a chunk."""

LOOP = Loop(given="chunk", result="result", first="first_chunk", next="next_chunk", last="clean_chunk")
TIMESTEP = "timestep"
RATES = ("signal_rate", "noise_rate", "next_signal_rate", "next_noise_rate")
"""Of ``next_chunk``."""


class OneEvaluation(nn.Module):
    """What surrounds the sampler's loop, and one turn of it: traced once and unrolled, since tracing takes seconds.

    Args:
        policy: normaliser and denoiser.
        initial: what the initial noise is multiplied by.
    """

    def __init__(self, policy: DiffusionPolicy, initial: float) -> None:
        super().__init__()
        self.policy, self.initial = policy, initial

    def forward(
        self,
        state: torch.Tensor,
        instruction: torch.Tensor,
        images: tuple[torch.Tensor, ...] | None,
        noise: torch.Tensor,
        prefix_actions: torch.Tensor | None,
        prefix_length: torch.Tensor | None,
        chunk: torch.Tensor,
        result: torch.Tensor,
        timestep: torch.Tensor,
        signal_rate: torch.Tensor,
        noise_rate: torch.Tensor,
        next_signal_rate: torch.Tensor,
        next_noise_rate: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """``state [B, T, S]``, ``instruction [B, E]``, of each view ``images`` uint8 ``[B, T, H, H, 3]``, ``noise [B,
        H, A]`` -> actions ``[B, H, A]``, physical units.

        The first ``prefix_length`` (int64 ``[B]``) rows of ``prefix_actions [B, H, A]`` are the answer's first rows. Of
        a policy that continues none both are ``None``: the graph would ask one of them for the size of its batch.

        Args:
            chunk: ``[B, H, A]``, what this turn is given: the first chunk, or the next one of the turn before.
            result: ``[B, H, A]``, normalised, of the last turn.
            timestep: int64 ``[1]``, that the network is told.
            signal_rate, noise_rate, next_signal_rate, next_noise_rate: scalars, see ``next_chunk``.

        Returns:
            the first chunk, the next one, the clean one that is predicted, and the actions that ``result`` means.
        """
        policy = self.policy
        embedding = policy.encode(state, instruction, images or ())
        if prefix_actions is not None and prefix_length is not None:
            committed = policy.committed_rows(prefix_length)
            given, prefix = committed[..., None] > 0, policy.normalize_actions(prefix_actions).clamp(-1.0, 1.0)
        else:
            committed, given, prefix = torch.zeros_like(noise[..., 0]), None, noise

        def keep_prefix(chunk: torch.Tensor) -> torch.Tensor:
            return chunk if given is None else torch.where(given, prefix, chunk)

        prediction = policy(chunk, timestep, embedding, committed)
        following, clean = next_chunk(
            policy.config.prediction_type,
            prediction,
            chunk,
            signal_rate=signal_rate,
            noise_rate=noise_rate,
            next_signal_rate=next_signal_rate,
            next_noise_rate=next_noise_rate,
        )
        return (
            keep_prefix(noise * self.initial),
            keep_prefix(following),
            keep_prefix(clean),
            policy.denormalize_actions(result),
        )


def image_inputs(config: PolicyConfig) -> list[str]:
    """The graph's inputs for the frames of each view, which are the observation's keys too."""
    return [f"{IMAGE_PREFIX}{view}" for view in config.views]


def observed_example(config: PolicyConfig) -> dict[str, Any]:
    """What a policy sees, of two robots, all of it zero."""
    ticks = config.observation_steps
    images = tuple(torch.zeros(2, ticks, size, size, 3, dtype=torch.uint8) for size in config.image_sizes)
    return {
        STATE_INPUT: torch.zeros(2, ticks, config.state_size),
        INSTRUCTION_INPUT: torch.zeros(2, config.instruction_size),
        IMAGES: images or None,  # the exporter takes no empty tuple
    }


def onnx_graph(policy: DiffusionPolicy, scheduler: Any) -> bytes:
    """The serialised ONNX model of a sampler's evaluations, with a dynamic batch axis and weights inside: deterministic
    DDIM (Song et al. 2021, eq. 12 with sigma = 0) or MIP.

    Args:
        policy: normaliser and denoiser.
        scheduler: from ``sampling_scheduler``.
    """
    config = policy.config
    chunks = (2, config.horizon, config.action_size)
    inputs: dict[str, Any] = {
        **observed_example(config),
        NOISE_INPUT: torch.zeros(chunks),
        PREFIX_ACTIONS_INPUT: torch.zeros(chunks) if config.max_committed_steps else None,
        PREFIX_LENGTH_INPUT: torch.zeros(2, dtype=torch.int64) if config.max_committed_steps else None,
        LOOP.given: torch.zeros(chunks),
        LOOP.result: torch.zeros(chunks),
    }
    constants = {TIMESTEP: torch.zeros(1, dtype=torch.int64), **{rate: torch.ones(()) for rate in RATES}}
    names = [name for name, value in inputs.items() if value is not None and name != IMAGES]
    names[len(OBSERVED) : len(OBSERVED)] = image_inputs(config)
    model = traced_graph(
        OneEvaluation(policy, float(scheduler.init_noise_sigma)).eval(),
        (*inputs.values(), *constants.values()),
        [*names, *constants],
        [LOOP.first, LOOP.next, LOOP.last, ACTIONS_OUTPUT],
        without_batch=len(constants),
    )
    evaluations = sampler_evaluations(config, scheduler)
    # Where nothing is added to it, the clean chunk is the result: the rest of the last turn leads nowhere.
    loop = replace(LOOP, last=LOOP.next) if evaluations[-1].next_noise_rate else LOOP
    model = unrolled(model, loop, [_constants(evaluation) for evaluation in evaluations])
    return bytes(model.SerializeToString(deterministic=True))


def _constants(evaluation: Evaluation) -> dict[str, torch.Tensor]:
    rates = {name: torch.tensor(getattr(evaluation, name)) for name in RATES}
    return {TIMESTEP: torch.tensor([evaluation.timestep]), **rates}
