"""The graph that is exported: observations, instruction and initial noise in, an action chunk out.

Normalisation, the unrolled DDIM loop and the final clamp are inside. The loop is unrolled because an ONNX ``Loop``
would rule out CUDA graphs. Inputs are found by name: the graph of a policy that was trained to continue committed
actions has two more, ``prefix_actions`` and ``prefix_length``; the loop keeps those rows at every step.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any, cast

import torch
from torch import nn

from chunkcast.training.policy import DiffusionPolicy

STATE_INPUT = "observation.state"
INSTRUCTION_INPUT = "instruction"
NOISE_INPUT = "noise"
PREFIX_ACTIONS_INPUT = "prefix_actions"
PREFIX_LENGTH_INPUT = "prefix_length"
ACTIONS_OUTPUT = "actions"


class DdimGraph(nn.Module):
    """Deterministic DDIM (Song et al. 2021, eq. 12 with sigma = 0), unrolled over a scheduler's timesteps.

    Args:
        policy: normaliser and denoiser.
        scheduler: a diffusers DDIM scheduler with its timesteps set; only its timesteps and
            abar are taken.
    """

    def __init__(self, policy: DiffusionPolicy, scheduler: Any) -> None:
        super().__init__()
        self.policy = policy
        self.predicts_sample = policy.config.prediction_type == "sample"
        timesteps = [int(timestep) for timestep in scheduler.timesteps]
        self.abar = [float(scheduler.alphas_cumprod[timestep]) for timestep in timesteps]
        # As diffusers has it: a stride of whole timesteps, which misses the next one by a timestep where the number of
        # evaluations does not divide the process. Below zero lies the clean chunk.
        stride = scheduler.config.num_train_timesteps // len(timesteps)
        self.abar_previous = [
            float(scheduler.alphas_cumprod[timestep - stride] if timestep >= stride else scheduler.final_alpha_cumprod)
            for timestep in timesteps
        ]
        for index, timestep in enumerate(timesteps):
            self.register_buffer(f"timestep_{index}", torch.tensor([timestep]))

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
        condition = self.policy.condition(state, instruction)
        if prefix_actions is None or prefix_length is None:
            given, prefix, committed = None, noise, torch.zeros_like(noise[..., 0])
        else:
            committed = self.policy.committed_rows(prefix_length)
            given = committed[..., None] > 0
            prefix = self.policy.normalize_actions(prefix_actions).clamp(-1.0, 1.0)

        def keep_prefix(chunk: torch.Tensor) -> torch.Tensor:
            return chunk if given is None else torch.where(given, prefix, chunk)

        chunk = keep_prefix(noise)
        for index, (abar, abar_previous) in enumerate(zip(self.abar, self.abar_previous, strict=True)):
            timestep = cast(torch.Tensor, getattr(self, f"timestep_{index}"))
            prediction = self.policy(chunk, timestep, condition, committed)
            if self.predicts_sample:
                clean = prediction
                noise_estimate = (chunk - abar**0.5 * clean) / (1.0 - abar) ** 0.5
            else:
                noise_estimate = prediction
                clean = (chunk - (1.0 - abar) ** 0.5 * noise_estimate) / abar**0.5
            chunk = abar_previous**0.5 * clean.clamp(-1.0, 1.0) + (1.0 - abar_previous) ** 0.5 * noise_estimate
            chunk = keep_prefix(chunk)
        return self.policy.denormalize_actions(chunk)


def onnx_graph(policy: DiffusionPolicy, scheduler: Any) -> bytes:
    """The serialised ONNX model of ``DdimGraph``, with a dynamic batch axis and weights inside."""
    config = policy.config
    example = [
        torch.zeros(2, config.observation_steps, config.state_size),
        torch.zeros(2, len(config.instructions)),
        torch.zeros(2, config.horizon, config.action_size),
    ]
    input_names = [STATE_INPUT, INSTRUCTION_INPUT, NOISE_INPUT]
    if config.max_committed_steps:
        example += [torch.zeros(2, config.horizon, config.action_size), torch.zeros(2, dtype=torch.int64)]
        input_names += [PREFIX_ACTIONS_INPUT, PREFIX_LENGTH_INPUT]
    model = traced_graph(DdimGraph(policy, scheduler).eval(), tuple(example), input_names, [ACTIONS_OUTPUT])
    return bytes(model.SerializeToString(deterministic=True))


def traced_graph(
    module: nn.Module, example: tuple[torch.Tensor, ...], input_names: list[str], output_names: list[str]
) -> Any:
    """``module`` as an ONNX ModelProto, its first axis dynamic, without a trace of where it was made."""
    batch = torch.export.Dim("batch")
    # The exporter warns of its own use of deprecated functions, and logs that torchvision is absent.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            example,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=tuple({0: batch} for _ in example),
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip_metadata(model)
    return model


def _strip_metadata(model: Any) -> None:
    """Remove what the exporter notes of its source: paths of the exporting machine, stack traces, line numbers.

    The hash of a graph, which names a policy's version, then depends on what it computes alone.
    """
    graph = model.graph
    for annotated in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del annotated.metadata_props[:]
        annotated.doc_string = ""
