"""A one-step student: a policy that learns in one evaluation what its teacher samples in several.

The student is given the teacher's initial noise and regresses the chunk that the teacher makes of it (as knowledge
distillation of samplers, Luhman & Luhman 2021, arXiv:2101.02388). The pairs are of windows that the teacher was trained
on, and of their committed actions, so the student continues these too.
"""

from __future__ import annotations

from typing import Any

import torch

from chunkcast.training.loss import DenoisingLoss, masked_mean, penalty
from chunkcast.training.policy import DiffusionPolicy
from chunkcast.training.sampling import sample_chunk, training_noise_scheduler
from chunkcast.training.windows import Batch

TEACHER_EVALUATIONS = 10


@torch.no_grad()
def taught_chunk(
    policy: DiffusionPolicy,
    teacher: DiffusionPolicy,
    teacher_sampler: Any,
    batch: Batch,
    noise: torch.Tensor,
    prefix_length: torch.Tensor,
) -> torch.Tensor:
    """What the teacher samples, normalised, float32 ``[B, H, A]``.

    Args:
        policy: the student, whose normalisation it is.
        teacher_sampler: from ``sampling_scheduler``.
        noise: float32 ``[B, H, A]``, where both begin.
        prefix_length: int64 ``[B]``, committed actions.
    """
    sampled = sample_chunk(
        teacher, teacher_sampler, batch.state, batch.instruction, noise, batch.executed, prefix_length
    )
    return policy.normalize_actions(sampled)


def student_loss(
    policy: DiffusionPolicy,
    batch: Batch,
    taught: torch.Tensor,
    noise: torch.Tensor,
    prefix_length: torch.Tensor,
    huber: float,
) -> DenoisingLoss:
    """The student's error from ``taught`` (from ``taught_chunk``), per window: it predicts the clean chunk from noise.

    The noise MSE is what follows from it, as for any clean-action prediction; at the last timestep that is next to
    nothing. ``huber`` is that of ``penalty``.
    """
    committed = policy.committed_rows(prefix_length)
    given = torch.where(committed[..., None] > 0, taught, noise)
    last = policy.config.train_timesteps - 1
    timestep = torch.full((len(noise),), last, device=noise.device)
    prediction = policy(given, timestep, policy.encode(batch.state, batch.instruction), committed).float()
    squared_error = (prediction - taught) ** 2
    objective = masked_mean(squared_error.detach(), 1.0 - committed)
    abar = training_noise_scheduler(policy.config).alphas_cumprod[last]
    minimized = masked_mean(penalty(squared_error, huber), 1.0 - committed)
    return DenoisingLoss(minimized, objective, objective * float(abar / (1.0 - abar)))
