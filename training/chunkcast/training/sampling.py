"""Noise schedulers, and sampling a chunk with them in torch: the reference that exported graphs are compared with."""

from __future__ import annotations

from typing import Any

import torch

from chunkcast.training.mip import MipScheduler
from chunkcast.training.policy import DiffusionPolicy, PolicyConfig


def training_noise_scheduler(config: PolicyConfig) -> Any:
    """Diffusers' DDPM scheduler with the cosine schedule (Nichol & Dhariwal 2021), as in Diffusion Policy; or MIP's."""
    if config.objective == "mip":
        return MipScheduler()
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=config.train_timesteps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=config.prediction_type,
    )


def sampling_scheduler(config: PolicyConfig, evaluations: int) -> Any:
    """Diffusers' DDIM scheduler over the same schedule, set to ``evaluations`` steps; or MIP's.

    Trailing spacing begins at the last timestep, where a sample *is* noise; leading spacing would begin two steps'
    sampling at t = 50 with noise that the network has never seen there (Lin et al. 2024, arXiv:2305.08891).
    """
    if config.objective == "mip":
        return MipScheduler(evaluations)
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(
        num_train_timesteps=config.train_timesteps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=config.prediction_type,
        clip_sample=True,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(evaluations)
    return scheduler


@torch.no_grad()
def sample_chunk(
    policy: DiffusionPolicy,
    scheduler: Any,
    state: torch.Tensor,
    instruction: torch.Tensor,
    noise: torch.Tensor,
    prefix_actions: torch.Tensor,
    prefix_length: torch.Tensor,
    images: tuple[torch.Tensor, ...] = (),
) -> torch.Tensor:
    """Action chunks ``[B, H, A]`` in physical units, by deterministic DDIM (Song et al. 2021, eq. 12, eta = 0) or MIP.

    This is the reference that the exported graph is compared with.

    Args:
        scheduler: from ``sampling_scheduler``.
        state: ``[B, T, S]``, physical units.
        instruction: ``[B, E]``.
        noise: ``[B, H, A]``, standard normal.
        prefix_actions: ``[B, H, A]``, physical units; the first ``prefix_length`` rows are committed and come back as
            they are, the others are ignored (training-time real-time chunking, Black et al. 2025, arXiv:2512.05964).
        prefix_length: int64 ``[B]``, 0 to the policy's ``max_committed_steps``.
        images: of each view, uint8 ``[B, T, H, H, 3]``.
    """
    embedding = policy.encode(state, instruction, images)
    committed = policy.committed_rows(prefix_length)
    given, prefix = committed[..., None] > 0, policy.normalize_actions(prefix_actions).clamp(-1.0, 1.0)
    chunk = torch.where(given, prefix, noise * scheduler.init_noise_sigma)
    for timestep in scheduler.timesteps:
        prediction = policy(chunk, timestep.expand(len(chunk)).to(chunk.device), embedding, committed)
        chunk = scheduler.step(prediction, timestep, chunk, eta=0.0).prev_sample
        chunk = torch.where(given, prefix, chunk)
    return policy.denormalize_actions(chunk)
