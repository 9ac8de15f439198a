"""A one-step student: a policy that learns in one evaluation what its teacher samples in several.

The student is given the teacher's initial noise and regresses the chunk that the teacher makes of it (as knowledge
distillation of samplers, Luhman & Luhman 2021, arXiv:2101.02388). The pairs are of windows that the teacher was trained
on, and of their committed actions, so the student continues these too.
"""

from __future__ import annotations

from typing import Any

import torch

from chunkcast.training.loss import DenoisingLoss, masked_mean
from chunkcast.training.policy import DiffusionPolicy
from chunkcast.training.sampling import sample_chunk
from chunkcast.training.windows import Batch

TEACHER_EVALUATIONS = 10


def student_loss(
    policy: DiffusionPolicy,
    teacher: DiffusionPolicy,
    teacher_sampler: Any,
    batch: Batch,
    noise: torch.Tensor,
    prefix_length: torch.Tensor,
) -> DenoisingLoss:
    """The student's error from what its teacher samples, per window.

    Args:
        policy: the student, which predicts the clean chunk.
        teacher: sampled without gradients.
        teacher_sampler: from ``sampling_scheduler``.
        noise: float32 ``[B, H, A]``, where both begin.
        prefix_length: int64 ``[B]``, committed actions.

    Returns:
        ``objective``, and as ``noise_mse`` the same: no noise is left to tell at the last timestep.
    """
    sampled = sample_chunk(
        teacher, teacher_sampler, batch.state, batch.instruction, noise, batch.executed, prefix_length
    )
    target = policy.normalize_actions(sampled)
    committed = policy.committed_rows(prefix_length)
    given = torch.where(committed[..., None] > 0, target, noise)
    last = torch.full((len(noise),), policy.config.train_timesteps - 1, device=noise.device)
    prediction = policy(given, last, policy.encode(batch.state, batch.instruction), committed).float()
    objective = masked_mean((prediction - target) ** 2, 1.0 - committed)
    return DenoisingLoss(objective, objective.detach())
