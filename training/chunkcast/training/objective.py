"""What a training step minimises: noise, timesteps, committed actions and words drawn for a batch, and its loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from chunkcast.training.checkpoint import LAST_CHECKPOINT, load_policy, read_checkpoint
from chunkcast.training.distillation import TEACHER_EVALUATIONS, student_loss, taught_chunk
from chunkcast.training.draws import Draws
from chunkcast.training.errors import CheckpointError
from chunkcast.training.language.instructions import Instructions
from chunkcast.training.loss import DenoisingLoss, denoising_loss, penalty, timestep_weights
from chunkcast.training.policy import DiffusionPolicy
from chunkcast.training.sampling import sampling_scheduler
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.vision.augmentation import recoloured, shifted
from chunkcast.training.warm_start import weights_file
from chunkcast.training.windows import Batch

PRIVILEGED_HUBER = 0.1
"""Standard deviations, from which on an error of what is told beside counts by its size: a centimetre of it is as worth
removing as the next, however many are left."""


class Objective:
    """The loss of a batch, with everything random in it.

    Args:
        config: the run's settings.
        policy: in training, on ``device``.
        noise_scheduler: from ``training_noise_scheduler``.
        instructions: of the run; sentences' embeddings get noise.
        previous: pairs of entries of the state, each a tick before and now.
        device: where the policy is.
        bf16: autocast to bfloat16.

    Raises:
        CheckpointError: the teacher is missing, or has other shapes.
    """

    def __init__(
        self,
        config: TrainConfig,
        policy: DiffusionPolicy,
        noise_scheduler: Any,
        *,
        instructions: Instructions,
        device: torch.device,
        bf16: bool,
        previous: tuple[tuple[int, int], ...],
    ) -> None:
        self._previous = previous
        self._config, self._policy, self._noise_scheduler = config, policy, noise_scheduler
        self._word_noise = config.instruction_noise if instructions.encoder else 0.0
        self._device, self._bf16 = device, bf16
        # MIP's two regressions weigh the same.
        weighting = config.loss_weighting if config.objective == "diffusion" else "uniform"
        self._weights = timestep_weights(noise_scheduler, config.prediction_type, weighting)
        # Of fixed shapes: batches are of one size. Validation, whose are not, is not compiled.
        self._denoising_loss = torch.compile(denoising_loss, dynamic=False) if config.compile else denoising_loss
        self._seen = torch.compile(self._look, dynamic=False) if config.compile else self._look
        self._teacher = _teacher(config.teacher, policy, instructions).to(device) if config.teacher else None
        if self._teacher:
            self._teacher_sampler = sampling_scheduler(self._teacher.config, TEACHER_EVALUATIONS)

    def loss(self, batch: Batch, draws: Draws) -> tuple[torch.Tensor, DenoisingLoss]:
        """What is minimised, a scalar; and the losses of those windows whose timesteps are drawn from all alike, which
        compare with validation's and with other runs'.
        """
        size = len(batch.mask) * self._config.noise_draws
        noise = draws.normal(size, *batch.actions.shape[1:]).to(self._device)
        prefix_length = self._prefix_lengths(size, draws).to(self._device)
        batch = self._augmented(self._stilled(self._told(batch, draws), draws), draws)
        if self._teacher:
            # The teacher is sampled in full precision: its rounding would be learned.
            target = taught_chunk(self._policy, self._teacher, self._teacher_sampler, batch, noise, prefix_length)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            if self._teacher:
                loss = student_loss(self._policy, batch, target, noise, prefix_length, self._config.huber)
                return loss.minimized.mean(), loss
            embedding, told = self._seen(batch)
            if self._config.noise_draws > 1:
                # In turns, not window by window: so each is among the noise-only ones alike.
                batch, embedding = (
                    batch.repeated(self._config.noise_draws),
                    embedding.repeat(self._config.noise_draws, 1),
                )
            timestep = self._timesteps(len(batch.mask), draws)
            loss = self._denoising_loss(
                self._policy,
                self._noise_scheduler,
                batch,
                timestep.to(self._device),
                noise,
                prefix_length,
                self._config.chunk_discount,
                self._config.huber,
                embedding,
            )
        minimized = (loss.minimized * self._weights[timestep].to(self._device)).mean()
        return minimized + told, loss.of(slice(self._noise_only(len(timestep), draws), None))

    def _look(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The encoded observations, float ``[B, W]``, and what is minimised of what the image encoders tell beside."""
        policy, weight = self._policy, self._config.privileged_weight
        looked = policy.look(batch.instruction, batch.images)
        embedding = policy.condition(batch.state, batch.instruction, looked)
        if looked is None or batch.privileged is None:
            return embedding, torch.zeros((), device=self._device)
        error = (policy.privileged(looked).float() - batch.privileged) ** 2
        return embedding, weight * penalty(error, PRIVILEGED_HUBER).mean()

    def _augmented(self, batch: Batch, draws: Draws) -> Batch:
        """``batch`` with its frames moved and in other light, each view on its own."""
        if not batch.images:
            return batch
        config = self._config
        images = tuple(
            recoloured(shifted(view, round(config.image_shift * view.shape[2]), draws), config.image_colour, draws)
            for view in batch.images
        )
        return replace(batch, images=images)

    def _noise_only(self, own: int, draws: Draws) -> int:
        """How many of this process's ``own`` windows, the first ones, are noised to the end. Never all of a batch: the
        others are reported.
        """
        share = self._config.noise_only_fraction if self._config.objective == "diffusion" else 0.0
        size = draws.size(own)
        return draws.own_of_first(min(round(share * size), size - 1))

    def _timesteps(self, size: int, draws: Draws) -> torch.Tensor:
        """At which timestep each window is noised, int64 ``[B]``; the windows of a batch are in random order."""
        last = self._config.process_timesteps - 1
        timestep = draws.integers(0, last + 1, size)
        timestep[: self._noise_only(size, draws)] = last
        return timestep

    def _prefix_lengths(self, size: int, draws: Draws) -> torch.Tensor:
        """How many actions of each window are committed, int64 ``[B]``."""
        longest = self._config.max_committed_steps
        if not longest:
            return torch.zeros(size, dtype=torch.int64)
        lengths = draws.integers(1, longest + 1, size)
        return lengths * (draws.uniform(size) < self._config.committed_fraction)

    def _stilled(self, batch: Batch, draws: Draws) -> Batch:
        """``batch`` with a share of its windows seen as if nothing had moved."""
        if not self._config.motion_dropout or not self._previous:
            return batch
        stilled = draws.uniform(len(batch.mask)) < self._config.motion_dropout
        return batch.stilled(stilled.to(self._device), self._previous)

    def _told(self, batch: Batch, draws: Draws) -> Batch:
        """``batch`` with noise on its instructions' embeddings: other words for the same lie around these."""
        if not self._word_noise:
            return batch
        noise = draws.normal(*batch.instruction.shape).to(self._device)
        return replace(batch, instruction=batch.instruction + self._word_noise * self._policy.instruction_scale * noise)


def _teacher(run: Path, student: DiffusionPolicy, instructions: Instructions) -> DiffusionPolicy:
    """The policy of a finished run, frozen; the student takes its weights over where both predict the same."""
    file = weights_file(run, LAST_CHECKPOINT)
    checkpoint = read_checkpoint(file)
    teacher = load_policy(checkpoint)
    if checkpoint.instructions.facts() != instructions.facts():
        raise CheckpointError(
            f"{file} is told other tasks, or in other words, than its student; take its demonstrations"
        )
    same = replace(teacher.config, prediction_type="sample", objective="diffusion")
    if replace(same, train_timesteps=student.config.train_timesteps) != student.config:
        raise CheckpointError(
            f"{file} is a policy of other shapes than the student's; train with the teacher's settings"
        )
    if teacher.config.prediction_type == "sample":
        student.load_state_dict(teacher.state_dict())
    return teacher
