"""The training loop: windows -> denoising loss -> AdamW and averaged weights -> validation -> checkpoint, by epoch.

Everything random in an epoch comes from generators seeded by (seed, epoch), so a run that was interrupted and
resumed at an epoch's end equals one that was not.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from chunkcast.training.checkpoint import LAST_CHECKPOINT, Checkpoint, Progress, read_checkpoint
from chunkcast.training.demonstrations.episodes import Demonstrations
from chunkcast.training.demonstrations.statistics import row_statistics
from chunkcast.training.distributed import ALONE, Processes
from chunkcast.training.draws import Draws
from chunkcast.training.errors import TrainingError
from chunkcast.training.health.findings import Finding
from chunkcast.training.health.judge import course_findings, run_settings, what_is_judged
from chunkcast.training.health.loss_curve import EpochLosses, curve_of_records
from chunkcast.training.health.rules import FATAL_CODES
from chunkcast.training.history import EpochRecord
from chunkcast.training.language.instruction_table import told_instructions
from chunkcast.training.new_policy import new_policy, policy_config_of
from chunkcast.training.objective import Objective
from chunkcast.training.rehearsal import Rehearsal
from chunkcast.training.run_checkpoints import RunCheckpoints
from chunkcast.training.run_identity import ROUNDED_OTHERWISE, gone_on, require_same_run
from chunkcast.training.sampling import sampling_scheduler, training_noise_scheduler
from chunkcast.training.state_differences import previous_of
from chunkcast.training.top_checkpoints import Candidate
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.validation import measurements, window_errors
from chunkcast.training.vision.seen import frames_facts, what_is_seen
from chunkcast.training.warm_start import start_from, weights_sha256
from chunkcast.training.weight_update import WeightUpdate
from chunkcast.training.windows import Windows, split_by_episode

VALIDATION_EVALUATIONS = 4
"""DDIM steps of the actions that are sampled for validation; what chunkcast-export takes by default."""


class Trainer:
    """One run of training.

    Args:
        config: the run's settings.
        demonstrations: as read.
        device: where to train.
        bf16: autocast to bfloat16.
        processes: that train together; each holds its part of a batch, and the rest of everything.
        new_episodes: the first ones, where the others are rehearsed; ``None`` where none are.

    Raises:
        CheckpointError: ``config.resume`` is set and the last checkpoint is of other settings or data.
        TrainingError: a batch cannot be shared evenly.
    """

    def __init__(
        self,
        config: TrainConfig,
        demonstrations: Demonstrations,
        device: torch.device,
        bf16: bool,
        processes: Processes = ALONE,
        new_episodes: int | None = None,
    ) -> None:
        if config.batch_size % processes.count:
            raise TrainingError(
                f"--batch-size {config.batch_size} cannot be shared by {processes.count} processes; take a multiple"
            )
        self.config, self.device, self.bf16, self.processes = config, device, bf16, processes
        train_episodes, validation_episodes = split_by_episode(demonstrations, config.validation_fraction, config.seed)

        self.instructions = told_instructions(demonstrations.tasks, config.text_encoder, config.instructions)

        with processes.in_turn():  # the first may have to decode videos
            self.seen = what_is_seen(config, demonstrations, train_episodes, device)

        def windows(episodes: Any, limit: int | None = None) -> Windows:
            return Windows(
                demonstrations,
                episodes,
                observation_steps=config.observation_steps,
                horizon=config.horizon,
                instructions=self.instructions,
                device=device,
                limit=limit,
                seen=self.seen,
            )

        self.training = windows(train_episodes)
        self.validation = windows(validation_episodes, config.validation_windows)
        self._rehearsal = (
            Rehearsal(self.training.rehearsed_from(new_episodes), config.rehearsal_share)
            if new_episodes is not None
            else None
        )
        torch.manual_seed(config.seed)
        statistics = row_statistics(
            demonstrations.states.narrowed(self.seen.state_entries) if self.seen else demonstrations.states,
            np.flatnonzero(np.isin(demonstrations.episode_index, train_episodes)),
        )
        self.policy_config = policy_config_of(config, demonstrations, self.seen, self.instructions)
        self.policy = new_policy(config, self.policy_config, demonstrations, statistics, self.instructions).to(device)
        if config.start_from is not None and not config.resume:
            start_from(self.policy, self.instructions, config.start_from, LAST_CHECKPOINT)
        self.state_range = (statistics.low.tolist(), statistics.high.tolist())
        if processes.count > 1 and any(isinstance(each, _BatchNorm) for each in self.policy.modules()):
            raise TrainingError(
                f"--image-encoder {config.image_encoder} has batch normalisation, whose statistics processes would not "
                "share; train it with one, or take conv"
            )
        self.noise_scheduler = training_noise_scheduler(self.policy_config)
        evaluations = 1 if config.teacher else min(VALIDATION_EVALUATIONS, config.process_timesteps)
        self.sampler = sampling_scheduler(self.policy_config, evaluations)
        self.objective = Objective(
            config,
            self.policy,
            self.noise_scheduler,
            instructions=self.instructions,
            device=device,
            bf16=bf16,
            previous=() if self.seen else previous_of(demonstrations.manifest["state"]["elements"]),
        )
        self.epoch_windows = self.training.epoch_size(config.windows_per_episode)
        self.steps_per_epoch = max(1, self.epoch_windows // config.batch_size)
        self.update = WeightUpdate(self.policy, config, config.epochs * self.steps_per_epoch, processes)
        self._standing_codes: set[str] = set()
        self.checkpoints = RunCheckpoints(config)
        self.progress = Progress(epoch=0, step=0, best_validation_loss=float("inf"), best_epoch=0)
        self.run_facts: dict[str, Any] = {
            "config": json.loads(json.dumps(asdict(config), default=str)),
            "data_sha256": demonstrations.sha256,
            "data_manifest": demonstrations.manifest,
            "frames": frames_facts(config, demonstrations),
            "told": json.loads(json.dumps(self.instructions.facts())),
            "episodes": len(demonstrations.episode_tasks),
            "training_windows": len(self.training),
            "epoch_windows": self.epoch_windows,
            "teacher_sha256": weights_sha256(config.teacher, LAST_CHECKPOINT),
            "start_from_sha256": weights_sha256(config.start_from, LAST_CHECKPOINT),
            "validation_windows": len(self.validation),
            "state_range": self.state_range,
            "parameters": sum(parameter.numel() for parameter in self.policy.parameters()),
            "bf16": bf16,
            "processes": processes.count,
            "shares_memory": self.update.shares_memory,
            "seconds": 0.0,
            "history": [],
            "command": shlex.join(["chunkcast-train", *sys.argv[1:]]),
        }
        if config.resume:
            self._restore(read_checkpoint(config.out / LAST_CHECKPOINT))

    def run(
        self,
        on_epoch: Callable[[EpochRecord, list[Finding]], None],
        on_step: Callable[[int, float], None] = lambda step, loss: None,
        on_played: Callable[[Candidate, int], None] = lambda candidate, step: None,
    ) -> str:
        """Train to the last epoch or until early stopping; returns why it ended.

        Args:
            on_epoch: called with each epoch's record, and what is now found that was not before, before the epoch's
                checkpoint is written.
            on_step: called with the step's number within the epoch and its loss.
            on_played: called with what a checkpoint's rollouts came to, and the steps that it was trained for.

        Raises:
            TrainingError: a loss or gradient is not finite, or the loss exploded; the last good checkpoint is kept.
        """
        if self.processes.first_of(
            self.checkpoints.owes(self.progress.epoch)
        ):  # it was interrupted while it was played
            self._rank_last(on_played)
        while self.progress.epoch < self.config.epochs:
            # Asked before an epoch, so that resuming a run that stopped early changes nothing.
            if self.config.patience and self.progress.epoch - self.progress.best_epoch >= self.config.patience:
                self._rank_last(on_played, stopped=True)
                return f"no lower validation loss for {self.config.patience} epochs"
            epoch = self.progress.epoch + 1
            started = time.monotonic()
            train = self._train_epoch(epoch, on_step)
            trained_for = time.monotonic() - started
            with self.update.averaged():
                validation = self._validate()
            record = EpochRecord(
                epoch=epoch,
                step=self.progress.step + self.steps_per_epoch,
                samples_per_second=self.steps_per_epoch * min(self.config.batch_size, self.epoch_windows) / trained_for,
                learning_rate=self.update.learning_rate,
                seconds=time.monotonic() - started,
                **train,
                **validation,
            )
            findings = self._findings(record)
            on_epoch(record, [finding for finding in findings if finding.code not in self._standing_codes])
            for finding in findings:
                if finding.code in FATAL_CODES:
                    kept = f"the checkpoint of epoch {epoch - 1} is kept" if epoch > 1 else "there is no checkpoint yet"
                    raise TrainingError(f"training diverged ({finding.evidence}); {kept}: lower --learning-rate")
            self._standing_codes = {finding.code for finding in findings}
            self._finish_epoch(record)
            self._rank(record, on_played)
        return "all epochs done"

    def _train_epoch(self, epoch: int, on_step: Callable[[int, float], None]) -> dict[str, Any]:
        # Generators live on the CPU, so that a run's numbers do not depend on where it trains.
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        self.policy.train()
        draws = Draws(generator, self.processes.rank, self.processes.count)
        batches = self.training.shuffled(
            self.config.batch_size, generator, self.config.windows_per_episode, self.processes, self._rehearsal
        )
        objective, noise_mse, counted, norm = (torch.zeros((), device=self.device) for _ in range(4))
        for step, batch in enumerate(batches):
            mean_loss, loss = self.objective.loss(batch, draws)
            mean_loss, step_norm = self.update.step(mean_loss)
            norm += step_norm
            objective += loss.objective.sum()
            noise_mse += loss.noise_mse.sum()
            counted += len(loss.objective)
            on_step(step + 1, step_loss := float(mean_loss))
            if not math.isfinite(step_loss):
                break  # nothing after this is worth its time: the epoch's means are not finite now
        self.processes.mean([objective, noise_mse, counted])
        return {
            "train_loss": float(objective / counted),
            "train_noise_mse": float(noise_mse / counted),
            "gradient_norm": float(norm) / self.steps_per_epoch,
        }

    def _validate(self) -> dict[str, Any]:
        """What the policy does on the held-out episodes; see ``validation.window_errors``."""
        errors = window_errors(
            self.policy,
            self.noise_scheduler,
            self.sampler,
            self.validation,
            self.config.execute_steps,
            first_timestep=self.config.process_timesteps - 1 if self.config.teacher else 0,
            processes=self.processes,
        )
        return measurements(errors, self.config.process_timesteps, self.instructions.tasks)

    @property
    def goes_on_as_it_began(self) -> bool:
        """Whether a run that was resumed has had as many processes all along, which share as much: else it differs from
        an uninterrupted one by rounding.
        """
        return not self.run_facts.get(ROUNDED_OTHERWISE, False)

    @property
    def loss_curve(self) -> list[EpochLosses]:
        """The losses of the epochs that are done."""
        return curve_of_records(EpochRecord(**record) for record in self.run_facts["history"])

    def _findings(self, *records: EpochRecord) -> list[Finding]:
        """What the rules about a run's course find at the end of its history and ``records``."""
        curve = [*self.loss_curve, *curve_of_records(records)]
        found = list(course_findings(what_is_judged(curve, run_settings(self.run_facts))))
        return found[-1] if found else []

    def _finish_epoch(self, record: EpochRecord) -> None:
        best = record.validation_loss < self.progress.best_validation_loss
        progress = Progress(
            epoch=record.epoch,
            step=record.step,
            best_validation_loss=record.validation_loss if best else self.progress.best_validation_loss,
            best_epoch=record.epoch if best else self.progress.best_epoch,
        )
        self.run_facts["seconds"] += record.seconds
        self.run_facts["history"].append(asdict(record))
        if self.processes.writes:
            self._write(record, progress, best)
        self.processes.wait()
        self.progress = progress  # only now: an interrupted write leaves the epoch before

    def _rank_last(self, on_played: Callable[[Candidate, int], None], *, stopped: bool = False) -> None:
        """Rank the last epoch's checkpoint, unless that was done."""
        if self.processes.first_of(self.checkpoints.owes(self.progress.epoch, stopped=stopped)):
            self._rank(EpochRecord(**self.run_facts["history"][-1]), on_played, stopped=stopped)

    def _rank(self, record: EpochRecord, on_played: Callable[[Candidate, int], None], *, stopped: bool = False) -> None:
        if self.processes.writes:
            self.checkpoints.rank(record, on_played, stopped=stopped)
        self.processes.wait()

    def _write(self, record: EpochRecord, progress: Progress, best: bool) -> None:
        weights = {f"model.{name}": value for name, value in self.policy.state_dict().items()}
        with self.update.averaged():
            averaged = {f"ema.{name}": value.clone() for name, value in self.policy.state_dict().items()}

        def checkpoint(tensors: dict[str, torch.Tensor]) -> Checkpoint:
            return Checkpoint(self.policy_config, self.instructions, self.run_facts, progress, tensors)

        optimizer = {f"optimizer.{name}": value for name, value in self.update.tensors().items()}
        whole = {**weights, **averaged, **optimizer}
        self.checkpoints.write(record, best, checkpoint(averaged), checkpoint(whole))

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Continue where ``checkpoint`` stands."""
        require_same_run(self.run_facts, checkpoint.run, self.config.out)
        self.policy.load_state_dict(checkpoint.part("model"))
        averaged = checkpoint.part("ema")
        averages = [averaged[name] for name, value in self.policy.named_parameters() if value.requires_grad]
        self.update.restore(checkpoint.part("optimizer"), averages, checkpoint.progress.step)
        self.checkpoints.top.resume(checkpoint.progress.epoch)
        self.progress, self.run_facts = checkpoint.progress, gone_on(self.run_facts, checkpoint.run)
        self._standing_codes = {finding.code for finding in self._findings()}  # said before the interruption
