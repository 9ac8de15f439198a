"""A bundle of any size, for benchmarks: the shipped policy's contract with a network of random weights.

Timing does not depend on what the weights are. ``python -m benchmarks.made_policy --out DIR --width 1472`` has the
parameters of a 73 M U-Net.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from chunkcast.server.bundle import read_bundle
from chunkcast.training.export.bundle_writer import write_bundle
from chunkcast.training.export.policy_graph import onnx_graph
from chunkcast.training.policy import DiffusionPolicy, PolicyConfig
from chunkcast.training.sampling import sampling_scheduler


@dataclass(frozen=True)
class MadePolicyConfig:
    """Write a bundle whose network has random weights."""

    out: Path
    """Folder to write; replaced if it exists."""
    width: int = 1472
    """Of the denoiser's residual stream."""
    blocks: int = 4
    """Residual blocks."""
    like: Path = Path("policies/metaworld-six")
    """Bundle whose contract is taken."""


def make_bundle(config: MadePolicyConfig) -> int:
    """Write the bundle; returns the network's number of parameters."""
    spec = read_bundle(config.like).spec
    state = spec.observations[0]
    torch.manual_seed(0)
    low = torch.tensor([element.low for element in spec.action.elements])
    high = torch.tensor([element.high for element in spec.action.elements])
    policy = DiffusionPolicy(
        PolicyConfig(
            state_size=state.shape[0],
            action_size=len(spec.action.elements),
            instruction_size=len(spec.instructions[0].embedding),
            observation_steps=spec.observation_steps,
            horizon=spec.action.horizon,
            denoiser="mlp",
            width=config.width,
            blocks=config.blocks,
            embedding_size=config.width,
            objective="diffusion",
            prediction_type="sample",
            train_timesteps=spec.sampler.train_timesteps,
            max_committed_steps=spec.action.max_committed_steps,
        ),
        torch.zeros(state.shape[0]),
        torch.ones(state.shape[0]),
        torch.zeros(len(spec.instructions[0].embedding)),
        torch.ones(()),
        low,
        high,
    ).eval()
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    del spec.files[:]
    spec.name, spec.version = config.out.resolve().name, ""
    spec.description = f"random weights, {parameters / 1e6:.1f} M parameters"
    scheduler = sampling_scheduler(policy.config, spec.sampler.evaluations)
    write_bundle(config.out, onnx_graph(policy, scheduler), spec, overwrite=True)
    return parameters


if __name__ == "__main__":
    made = tyro.cli(MadePolicyConfig)
    print(f"{made.out}: {make_bundle(made) / 1e6:.1f} M parameters")
