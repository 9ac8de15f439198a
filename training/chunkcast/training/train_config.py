"""The settings of a training run: the command line is made from this dataclass, and every run keeps it as JSON.

What holds where no flag says otherwise also depends on the preset, the denoiser and the target: see ``presets``.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chunkcast.simulation.cameras import MAX_SIZE, MIN_SIZE
from chunkcast.simulation.metaworld_tasks import PROPRIOCEPTION
from chunkcast.training.choices import DenoiserName, Objective, PredictionType, PresetName
from chunkcast.training.demonstrations.memory import Memory
from chunkcast.training.errors import TrainingError
from chunkcast.training.seeds import CHOICE_SEED, EVALUATION_SEED

MIP_TIMESTEPS = 2


@dataclass(frozen=True)
class TrainConfig:
    """Train a diffusion policy on demonstrations; write checkpoints, history and TensorBoard events."""

    preset: PresetName = "default"
    """Which settings hold where no flag says otherwise: default, or tinyvla-73m, the U-Net of 73 M parameters and the
    recipe that this project began with."""
    data: Path = field(kw_only=True)
    """Folder of demonstrations: made by chunkcast-collect, or a LeRobotDataset v3."""
    out: Path = field(kw_only=True)
    """Folder of the run: config.json, history.jsonl, checkpoints/, tensorboard/."""
    epochs: int = 100
    """Passes over all windows; the learning rate's cosine ends with the last."""
    windows_per_episode: int = 0
    """Windows of each episode in an epoch, drawn anew for each; 0 takes every tick's. An epoch of a large network may
    be too long to wait for."""
    batch_size: int = 512
    """Windows per optimiser step."""
    learning_rate: float = 3e-3
    """AdamW's peak learning rate."""
    adam_beta2: float = 0.999
    """AdamW's decay of the squared gradients' average."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    warmup_steps: int = 200
    """Optimiser steps of linear warm-up before the cosine."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient; beyond it, it is scaled down."""
    ema_decay: float = 0.999
    """Decay of the exponential moving average of the weights, which is what is validated and exported."""
    objective: Objective = "diffusion"
    """What is minimised: the denoising loss (diffusion), or MIP's two regressions, which sample without noise."""
    prediction_type: PredictionType = "sample"
    """What the network predicts: the clean action chunk (sample), the noise (epsilon) or the velocity (v_prediction).
    For the last two --noise-only-fraction and --huber are 0 where nothing else is said; noise needs more
    evaluations."""
    loss_weighting: Literal["clamped-snr", "uniform"] = "clamped-snr"
    """Weight of a timestep's clean-action error: its signal-to-noise ratio clamped to [1, 5], or 1 for all. The clamp
    keeps both ends: the first evaluations start from noise alone, the last decide the precision."""
    huber: float = 0.1
    """Size of an error, in the units of what is predicted (of an action: half its range), from which on it counts by
    its size and no longer by its square: a policy then does the likelier of two things instead of one in between. 0
    minimises the squared error."""
    teacher: Path | None = None
    """A finished run whose sampled chunks are what is learned, in one evaluation (a one-step student); the new network
    has the teacher's shapes and begins with its weights, where the teacher predicts the clean chunk too."""
    start_from: Path | None = None
    """A bundle or a run whose weights and normalisation the network begins with, of the same shapes: to train a policy
    on, on these demonstrations."""
    rehearsal: Path | None = None
    """Demonstrations that the weights of --start-from were trained on: rehearsed beside the new ones of --data, so that
    old tasks are not forgotten. The learning rate and the epochs are then those of fine-tuning, where nothing else is
    said."""
    rehearsal_share: float = 0.5
    """Of a batch's windows, those that are rehearsed."""
    noise_only_fraction: float = 0.9
    """Share of the training windows at the last timestep, where nothing of the chunk is left and the first evaluation
    starts; the others are drawn from all timesteps alike. A policy that is sampled in few evaluations needs it most."""
    chunk_discount: float = 0.85
    """Weight of an action's error relative to the one before it in its chunk: the robot plans again long before the
    last. 1 weighs all alike."""
    train_timesteps: int = 100
    """Timesteps of the diffusion process."""
    horizon: int = 16
    """Actions in a predicted chunk."""
    text_encoder: Path | None = None
    """Folder of a text encoder (chunkcast-text-encoder): the policy is then told its task by a sentence, and takes free
    text. Left out, it is told by the task's plain name."""
    instructions: Path | None = None
    """Table of instructions and paraphrases, TOML; by default that of MetaWorld's fifty tasks."""
    instruction_noise: float = 0.3
    """Standard deviation of the noise on a sentence's embedding, as a share of the embeddings' own spread."""
    observation_steps: int = 1
    """Observations that the policy sees: the current one and those before it. MetaWorld's state already holds the
    tick before."""
    execute_steps: int = 4
    """Actions of a chunk to execute before planning again; the policy's advice to the robot."""
    max_committed_steps: int = 8
    """The longest prefix of committed actions, those that the robot plays while inference runs, that the policy learns
    to continue smoothly; 0 trains without real-time chunking."""
    committed_fraction: float = 0.25
    """Share of the training windows that get such a prefix, its length drawn from 1 to --max-committed-steps."""
    differences: bool = True
    """Show the network the vectors between the state's points too, elements that are named NAME_x, NAME_y and NAME_z in
    metres, and how each point moved since previous_NAME; where it has cameras, what it knows of itself, in fine
    intervals."""
    motion_dropout: float = 0.3
    """Share of the training windows that are shown as if nothing had moved since the tick before (past motion dropout,
    Bansal et al. 2018, arXiv:1812.03079). In demonstrations only an arm that has arrived stands still: a policy that
    takes its own rest for a sign of that waits forever wherever it comes to one."""
    cameras: tuple[str, ...] = ()
    """Views that the policy sees, of those that chunkcast-render made frames of. It is then shown no more of the
    recorded state than --proprioception; without, it is shown all of it and no frames."""
    proprioception: int = PROPRIOCEPTION
    """Entries of the state, the first ones, that a policy with cameras is shown: what the robot knows of itself."""
    image_size: int = 0
    """Height and width, pixels, that the videos of a LeRobotDataset are cut and scaled to; 0 takes a video's smaller
    side. Other frames have the size that they were rendered in."""
    image_encoder: str = "conv"
    """What looks at the frames: a small convolutional network (conv), or any of timm's models by name, such as
    resnet18; resnet18:scratch begins with random weights."""
    image_features: int = 256
    """Numbers that it makes of a frame."""
    image_shift: float = 0.03
    """Share of their size by which a training window's frames are moved at most."""
    image_colour: float = 0.1
    """Share by which their brightness and each of their colours varies."""
    privileged_weight: float = 1.0
    """Weight of what the image encoder learns beside: to tell from the frames where objects and goal are, as recorded.
    The policy never sees it, and robots need not know it; 0 leaves it out, as where no such state was recorded."""
    noise_draws: int = 1
    """Chunks that are noised for each window: a frame is encoded once for all of them."""
    frame_memory_gb: float = 8.0
    """Decoded frames are held in memory up to this size, and decoded for each batch beyond it."""
    data_memory_gb: float = 4.0
    """States and actions are held in memory up to this size; larger data sets are copied once into shards that are
    mapped from disk."""
    mapped_folder: Path | None = None
    """Where such copies lie; by default within the demonstrations' folder."""
    denoiser: DenoiserName = "mlp"
    """The network: a residual MLP over the flattened chunk, a U-Net over time (ConditionalUnet1D), or a transformer
    with a token an action (DiT)."""
    width: int = 352
    """Of the denoiser: the MLP's residual stream, the U-Net's first level (each further one has twice as many
    channels), a token of the transformer."""
    blocks: int = 4
    """Of the denoiser: the MLP's residual blocks, the U-Net's levels, the transformer's layers."""
    embedding_size: int = 0
    """Of the encoded observation and instruction that the denoiser is conditioned on; 0 takes --width."""
    validation_fraction: float = 0.05
    """Share of each task's episodes (at least one) held out for the validation loss."""
    validation_windows: int = 4096
    """The most windows, spread evenly over those episodes, that are validated on after each epoch."""
    patience: int = 30
    """Stop after this many epochs without a lower validation loss; 0 never stops early."""
    rollout_every: int = 0
    """Play the averaged weights after every so many epochs and after the last: they are exported, served, and measured
    on MetaWorld through the server. 0 never does."""
    rollout_episodes: int = 10
    """Episodes of each task that are then played."""
    rollout_seed: int = CHOICE_SEED
    """Their first seed. Checkpoints are chosen by these: evaluate the chosen one on others (chunkcast-sim's own)."""
    rollout_workers: int = os.cpu_count() or 1
    """Parallel robots that play them."""
    keep_best: int = 3
    """Checkpoints to keep by measured success, and as many by validation loss."""
    keep_epochs: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Epochs whose averaged weights are kept as a checkpoint of their own, for chunkcast-health calibrate."""
    seed: int = 0
    """Seed of initialisation, split, batches and noise."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 autocast where the processor computes in it (auto), always, or never."""
    device: str = "auto"
    """auto takes CUDA where there is one; otherwise a torch device such as cpu or cuda:1."""
    compile: bool = False
    """Compile the loss (torch.compile): it takes half a minute or more and needs a C++ compiler. On a CPU it gains
    little or nothing: measure (make compiled). Losses differ by rounding."""
    resume: bool = False
    """Continue the run in --out from its last checkpoint; the result equals an uninterrupted run."""

    @property
    def memory(self) -> Memory:
        """What may be held of the demonstrations."""
        return Memory(self.data_memory_gb * 1e9, self.mapped_folder)

    @property
    def process_timesteps(self) -> int:
        """Timesteps of the process that is trained: the diffusion's, or MIP's two."""
        return MIP_TIMESTEPS if self.objective == "mip" else self.train_timesteps

    def __post_init__(self) -> None:
        """Refuse values that no run could use."""
        for name in (
            "epochs",
            "batch_size",
            "train_timesteps",
            "horizon",
            "observation_steps",
            "blocks",
            "validation_windows",
            "proprioception",
            "image_features",
            "noise_draws",
            "rollout_episodes",
            "rollout_workers",
        ):
            self._require(name, getattr(self, name) >= 1, "be at least 1")
        self._require(
            "image_size",
            self.image_size == 0 or MIN_SIZE <= self.image_size <= MAX_SIZE,
            f"be 0, or lie in [{MIN_SIZE}, {MAX_SIZE}]",
        )
        if not 1 <= self.execute_steps <= self.horizon:
            raise TrainingError(f"--execute-steps must lie in [1, --horizon {self.horizon}], got {self.execute_steps}")
        if not 0 <= self.max_committed_steps < self.horizon:
            raise TrainingError(
                f"--max-committed-steps must lie in [0, --horizon {self.horizon}), got {self.max_committed_steps}"
            )
        self._require("rehearsal_share", 0.0 < self.rehearsal_share < 1.0, "lie in (0, 1)")
        if self.rehearsal is not None and (self.start_from is None or self.cameras or self.windows_per_episode):
            raise TrainingError(
                "--rehearsal goes with --start-from, and without --cameras and --windows-per-episode; the weights that "
                "are to be kept are missing, or cannot be rehearsed so"
            )
        self._require("batch_size", self.rehearsal is None or self.batch_size > 1, "be at least 2 with --rehearsal")
        for name in ("committed_fraction", "noise_only_fraction", "motion_dropout"):
            self._require(name, 0.0 <= getattr(self, name) <= 1.0, "lie in [0, 1]")
        if self.width < 8 or self.width % 4:
            raise TrainingError(f"--width must be a multiple of 4 and at least 8, got {self.width}")
        self._require("validation_fraction", 0.0 < self.validation_fraction < 1.0, "lie in (0, 1)")
        for name in ("ema_decay", "adam_beta2"):
            self._require(name, 0.0 <= getattr(self, name) < 1.0, "lie in [0, 1)")
        for name in ("rollout_every", "rollout_seed", "keep_best"):
            self._require(name, getattr(self, name) >= 0, "not be negative")
        if self.rollout_every and not self.keep_best:
            raise TrainingError("--rollout-every keeps the most successful checkpoints: --keep-best must be at least 1")
        self._require(
            "rollout_seed", self.rollout_seed < EVALUATION_SEED, f"lie below {EVALUATION_SEED}, where evaluations begin"
        )
        self._require("windows_per_episode", self.windows_per_episode >= 0, "not be negative")
        self._require("huber", 0.0 <= self.huber < math.inf, "be finite and not negative")
        self._require("chunk_discount", 0.0 < self.chunk_discount <= 1.0, "lie in (0, 1]")
        for name in ("image_shift", "image_colour", "privileged_weight", "frame_memory_gb", "data_memory_gb"):
            self._require(name, 0.0 <= getattr(self, name) < math.inf, "be finite and not negative")
        if self.teacher is not None and (self.cameras or self.noise_draws > 1 or self.compile):
            raise TrainingError("--teacher is for policies without --cameras, --noise-draws 1, and without --compile")
        if self.learning_rate <= 0.0 or self.gradient_clip <= 0.0:
            raise TrainingError("--learning-rate and --gradient-clip must be positive")
        self._check_objective_and_instructions()

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise TrainingError(f"--{name.replace('_', '-')} must {rule}, got {getattr(self, name)}")

    def _check_objective_and_instructions(self) -> None:
        if self.teacher is not None and self.start_from is not None:
            raise TrainingError("--teacher already begins with the teacher's weights; leave out --start-from")
        if self.teacher is not None and (self.objective, self.prediction_type) != ("diffusion", "sample"):
            raise TrainingError("--teacher needs --objective diffusion and --prediction-type sample: one evaluation")
        if self.objective == "mip" and self.prediction_type != "sample":
            raise TrainingError("--objective mip predicts the clean chunk; leave out --prediction-type")
        self._require("instruction_noise", self.instruction_noise >= 0.0, "not be negative")
        if self.instructions is not None and self.text_encoder is None:
            raise TrainingError("--instructions needs --text-encoder, which turns them into embeddings")
