"""The denoising loss, and the noise MSE that follows from any prediction type.

x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Ho et al. 2020, eq. 4); ``abar`` is ``alphas_cumprod``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from chunkcast.training.choices import PredictionType
from chunkcast.training.policy import DiffusionPolicy
from chunkcast.training.windows import Batch

MIN_SNR_WEIGHT = 1.0
MAX_SNR_WEIGHT = 5.0

CONTINUATION_DECAY = 0.6
"""A share of 0.6^4 = 0.13 is left after four rows, a chunk's executed part. Slower decays were not smoother, and failed
more often."""


@dataclass(frozen=True)
class DenoisingLoss:
    """Per-window losses over the chunk's unmasked actions.

    Attributes:
        minimized: float32 ``[B]``, the error of what the network predicts (x_0, eps or v), squared or as ``penalty``
            says, later actions discounted.
        objective: float32 ``[B]``, its squared error, of all actions alike: what is reported, and compared between
            training and validation.
        noise_mse: float32 ``[B]``, the squared error of the noise, whatever is predicted: what runs are compared by.
    """

    minimized: torch.Tensor
    objective: torch.Tensor
    noise_mse: torch.Tensor

    def of(self, windows: slice) -> DenoisingLoss:
        """The losses of these windows alone."""
        return DenoisingLoss(self.minimized[windows], self.objective[windows], self.noise_mse[windows])


def denoising_loss(
    policy: DiffusionPolicy,
    noise_scheduler: Any,
    batch: Batch,
    timestep: torch.Tensor,
    noise: torch.Tensor,
    prefix_length: torch.Tensor,
    discount: float = 1.0,
    huber: float = 0.0,
    embedding: torch.Tensor | None = None,
) -> DenoisingLoss:
    """The loss of ``batch`` at ``timestep`` (int64 ``[B]``) with ``noise`` (float32 ``[B, H, A]``).

    The first ``prefix_length`` (int64 ``[B]``) rows of each chunk are given, as they were executed, and left out of the
    loss: the network learns to continue what the robot is committed to (see ``continued_chunk``).

    ``discount`` weighs the rows of what is minimised, by that much less a row from the first that is not given: a robot
    plans again long before the last. ``huber`` is that of ``penalty``, in the units of what is predicted.

    ``embedding`` is the encoded observation, where it is known already.

    For a clean-action prediction, eps_hat = (x_t - sqrt(abar_t) x0_hat) / sqrt(1 - abar_t). At the first timesteps
    that divides by nearly zero, so compare such losses by timestep.
    """
    clean = policy.normalize_actions(batch.actions)
    committed = policy.committed_rows(prefix_length)
    clean = continued_chunk(clean, policy.normalize_actions(batch.executed), prefix_length)
    noisy = torch.where(committed[..., None] > 0, clean, noise_scheduler.add_noise(clean, noise, timestep))
    if embedding is None:
        embedding = policy.encode(batch.state, batch.instruction, batch.images)
    prediction = policy(noisy, timestep, embedding, committed).float()
    abar = noise_scheduler.alphas_cumprod.to(timestep.device)[timestep]  # [B]
    match policy.config.prediction_type:
        case "sample":
            # eps_hat - eps = sqrt(abar / (1 - abar)) (x_0 - x0_hat)
            target, noise_share = clean, abar / (1.0 - abar)
        case "epsilon":
            target, noise_share = noise, torch.ones_like(abar)
        case "v_prediction":
            # eps_hat - eps = sqrt(abar) (v_hat - v)
            target, noise_share = noise_scheduler.get_velocity(clean, noise, timestep), abar
    squared_error, mask = (prediction - target) ** 2, batch.foreseeable(prefix_length)
    rows = torch.arange(mask.shape[1], device=mask.device)[None]  # [1, H]
    discounts = discount ** (rows - prefix_length[:, None]).clamp_min(0)  # [B, H]
    objective = masked_mean(squared_error.detach(), mask)
    minimized = masked_mean(penalty(squared_error, huber), mask * discounts)
    return DenoisingLoss(minimized, objective, objective * noise_share)


def penalty(squared_error: torch.Tensor, huber: float) -> torch.Tensor:
    """What an error costs: its square or, from about ``huber`` on, its size (pseudo-Huber: sqrt(e^2 + c^2) - c).

    Squared errors teach the mean. Where one of two actions is right, and a state leaves open which, that is a third one
    that nobody demonstrated; errors by their size teach the likelier one.
    """
    if not huber:
        return squared_error
    # sqrt(e^2 + c^2) - c without the difference, in which a small error's digits are lost.
    return squared_error / ((squared_error + huber**2).sqrt() + huber)


def continued_chunk(clean: torch.Tensor, executed: torch.Tensor, prefix_length: torch.Tensor) -> torch.Tensor:
    """What the robot should do that is committed to the first actions: these, and then smoothly back to the expert's.

    Training-time real-time chunking (Black et al. 2025, arXiv:2512.05964) gives the network the committed actions and
    learns the rest as demonstrated. A scripted expert, however, answers the state of each tick alone: its action jumps
    from whatever was executed before. So what the last committed action differs by from the expert's decays over the
    rows after it, by ``CONTINUATION_DECAY`` a row.

    Args:
        clean: ``[B, H, A]``, the expert's actions, normalised.
        executed: ``[B, H, A]``, what was executed in their place, normalised.
        prefix_length: int64 ``[B]``; where it is 0, the chunk is the expert's.
    """
    rows = torch.arange(clean.shape[1], device=clean.device)[None]  # [1, H]
    last = (prefix_length - 1).clamp_min(0)[:, None]  # [B, 1]
    window = torch.arange(len(clean), device=clean.device)
    difference = (executed - clean)[window, last[:, 0]][:, None]  # [B, 1, A]
    after = (CONTINUATION_DECAY ** (rows - last)) * (prefix_length > 0)[:, None]  # [B, H]
    continued = (clean + after[..., None] * difference).clamp(-1.0, 1.0)
    return torch.where((rows < prefix_length[:, None])[..., None], executed, continued)


def timestep_weights(noise_scheduler: Any, prediction_type: PredictionType, weighting: str) -> torch.Tensor:
    """The objective's weight at each timestep, float32 ``[train timesteps]``.

    ``clamped-snr`` weighs the clean-action error by SNR(t) = abar / (1 - abar), clamped from above as in Min-SNR-5
    (Hang et al. 2023, arXiv:2303.09556) and from below at 1 as in truncated SNR (Salimans & Ho 2022,
    arXiv:2202.00512). The velocity's error is the clean-action error times (SNR + 1) and the noise's the same times the
    SNR, so their weights are divided by these; for ``epsilon`` the lower clamp is left out, which would give the last
    timestep, whose SNR is nearly zero, all the weight.
    """
    abar: torch.Tensor = noise_scheduler.alphas_cumprod
    if weighting == "uniform":
        return torch.ones_like(abar)
    snr = abar / (1.0 - abar)
    if prediction_type == "epsilon":
        return snr.clamp(max=MAX_SNR_WEIGHT) / snr
    weights = snr.clamp(MIN_SNR_WEIGHT, MAX_SNR_WEIGHT)
    return weights / (snr + 1.0) if prediction_type == "v_prediction" else weights


def masked_mean(squared_error: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over the unmasked actions of each window: ``[B, H, A], [B, H] -> [B]``; 0 where all are masked."""
    return (squared_error.mean(-1) * mask).sum(-1) / mask.sum(-1).clamp_min(1.0)
