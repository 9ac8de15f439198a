"""The diffusion policy as a module: physical units in, the denoiser's prediction out.

Normalisation belongs to the policy, so that a checkpoint and an exported graph both carry it. Shapes: ``B`` batch,
``T`` observation steps, ``S`` state size, ``E`` instruction embedding size, ``W`` size of the encoded observation,
``H`` horizon, ``A`` action size, ``V`` views of cameras, ``P`` what is told of the recorded state in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from chunkcast.training.choices import DenoiserName, Objective, PredictionType
from chunkcast.training.denoisers.denoiser import DenoiserConfig, make_denoiser
from chunkcast.training.vision.image_encoder import make_image_encoder

NORMALIZED_STATE_LIMIT = 5.0
"""States are clamped to this many standard deviations: one sensor's glitch must not drive the network anywhere."""

MIN_STATE_STD = 1e-3
"""Entries that never vary (padding) are divided by this and stay at zero; real ones vary by more than a millimetre."""

MIN_DIFFERENCE_STD = 1e-4
"""As for the state; a point moves by a millimetre in a tick."""

BINS = 48
"""Intervals of a difference or an entry, each holding as many of its distinct values: narrow where hands meet objects,
wide on the way there."""

MIN_BIN_WIDTH = 2e-4
"""Metres; of what never varies all edges are the same."""

EDGE_SAMPLES = 100_000
"""The most states from which the intervals are taken."""


@dataclass(frozen=True)
class PolicyConfig:
    """What fixes the network's shapes and its diffusion process; stored in every checkpoint."""

    state_size: int
    action_size: int
    instruction_size: int
    """Of an instruction's embedding, ``E``."""
    observation_steps: int
    horizon: int
    denoiser: DenoiserName
    width: int
    blocks: int
    embedding_size: int
    """Of the encoded observation and instruction, ``W``."""
    objective: Objective
    prediction_type: PredictionType
    train_timesteps: int
    max_committed_steps: int = 0
    """The longest prefix of committed actions that the network has learned to continue; 0: none."""
    differences: tuple[tuple[int, int], ...] = ()
    """Pairs of entries of the state whose difference the encoder sees too, and in intervals (see
    ``state_differences``)."""
    binned: tuple[int, ...] = ()
    """Entries of the state that the encoder sees in intervals too."""
    views: tuple[str, ...] = ()
    """Cameras' views whose frames the policy sees; none for a policy of states."""
    image_sizes: tuple[int, ...] = ()
    """Height and width of each view's frames, pixels."""
    image_encoder: str = ""
    """See ``vision.image_encoder``."""
    image_features: int = 0
    """What a frame is encoded as."""
    privileged_size: int = 0
    """Entries that the image encoders learn to tell of the recorded state beside, ``P``."""


class DiffusionPolicy(nn.Module):
    """Normaliser, encoder of observation and instruction, and denoiser.

    Args:
        config: the shapes.
        state_mean, state_std: float32 ``[S]``, of the training windows.
        instruction_mean: float32 ``[E]``, of the instructions' embeddings.
        instruction_scale: float32 ``[]``, their root mean square distance from it, an entry.
        action_low, action_high: float32 ``[A]``, the robot's bounds; actions are scaled from them to [-1, 1].
        pretrained: begin with published weights of the image encoders, where they have some.
    """

    state_mean: torch.Tensor
    state_std: torch.Tensor
    instruction_mean: torch.Tensor
    instruction_scale: torch.Tensor
    action_low: torch.Tensor
    action_high: torch.Tensor
    minuends: torch.Tensor
    subtrahends: torch.Tensor
    binned: torch.Tensor
    difference_std: torch.Tensor
    bin_low: torch.Tensor
    bin_width: torch.Tensor

    def __init__(
        self,
        config: PolicyConfig,
        state_mean: torch.Tensor,
        state_std: torch.Tensor,
        instruction_mean: torch.Tensor,
        instruction_scale: torch.Tensor,
        action_low: torch.Tensor,
        action_high: torch.Tensor,
        *,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("state_mean", state_mean)
        self.register_buffer("state_std", state_std.clamp_min(MIN_STATE_STD))
        self.register_buffer("instruction_mean", instruction_mean)
        self.register_buffer("instruction_scale", instruction_scale)
        self.register_buffer("action_low", action_low)
        self.register_buffer("action_high", action_high)
        self.register_buffer("minuends", torch.tensor([pair[0] for pair in config.differences], dtype=torch.int64))
        self.register_buffer("subtrahends", torch.tensor([pair[1] for pair in config.differences], dtype=torch.int64))
        self.register_buffer("binned", torch.tensor(config.binned, dtype=torch.int64), persistent=False)
        self.register_buffer("difference_std", torch.ones(len(config.differences)))
        in_intervals = len(config.differences) + len(config.binned)
        self.register_buffer("bin_low", torch.zeros(in_intervals, BINS))
        self.register_buffer("bin_width", torch.ones(in_intervals, BINS))
        state_features = config.state_size + len(config.differences) + in_intervals * BINS
        image_features = len(config.views) * config.image_features
        condition_size = config.observation_steps * (state_features + image_features) + config.instruction_size
        self.image_encoders = nn.ModuleList(
            make_image_encoder(
                config.image_encoder,
                size=size,
                features=config.image_features,
                instruction_size=config.instruction_size,
                pretrained=pretrained,
            )
            for size in config.image_sizes
        )
        if config.privileged_size:
            self.privileged = nn.Sequential(nn.SiLU(), nn.Linear(image_features, config.privileged_size))
        self.encoder = nn.Sequential(
            nn.Linear(condition_size, config.embedding_size),
            nn.SiLU(),
            nn.Linear(config.embedding_size, config.embedding_size),
        )
        self.denoiser = make_denoiser(
            config.denoiser,
            DenoiserConfig(
                horizon=config.horizon,
                action_size=config.action_size,
                embedding_size=config.embedding_size,
                width=config.width,
                blocks=config.blocks,
                sees_committed=config.max_committed_steps > 0,
            ),
        )

    def encode(
        self, state: torch.Tensor, instruction: torch.Tensor, images: tuple[torch.Tensor, ...] = ()
    ) -> torch.Tensor:
        """``state [B, T, S]`` in physical units, ``instruction [B, E]`` and of each view ``images`` uint8
        ``[B, T, H, H, 3]``, encoded ``[B, W]``: once for a chunk, whatever the number of evaluations.

        Beside the state the encoder sees its ``differences``, in their own standard deviations, and these and the
        ``binned`` entries in a piecewise linear encoding over intervals (Gorishniy et al. 2022, arXiv:2203.05556, eq.
        1): an expert does another thing from one millimetre to the next, and a network that is shown a smooth number
        learns such an edge slowly.
        """
        return self.condition(state, instruction, self.look(instruction, images))

    def look(self, instruction: torch.Tensor, images: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
        """What the image encoders make of each view's ``images [B, T, H, H, 3]``: ``[B, T, V F]``; ``None`` without."""
        if not images:
            return None
        told = (instruction - self.instruction_mean) / self.instruction_scale
        ticks = images[0].shape[1]
        told = told[:, None].expand(-1, ticks, -1).flatten(0, 1)
        features = [
            encoder(view.flatten(0, 1), told) for encoder, view in zip(self.image_encoders, images, strict=True)
        ]
        return torch.cat(features, -1).reshape(-1, ticks, len(images) * self.config.image_features)

    def condition(self, state: torch.Tensor, instruction: torch.Tensor, looked: torch.Tensor | None) -> torch.Tensor:
        """What is seen, as one: ``looked`` is from ``look``; the rest as in ``encode``."""
        normalized = (state - self.state_mean) / self.state_std
        normalized = normalized.clamp(-NORMALIZED_STATE_LIMIT, NORMALIZED_STATE_LIMIT)
        told = (instruction - self.instruction_mean) / self.instruction_scale
        seen = [normalized.flatten(1), told]
        if looked is not None:
            seen.append(looked.flatten(1))
        if self.config.differences:
            scaled = self._between(state) / self.difference_std  # [B, T, D]
            seen.append(scaled.clamp(-NORMALIZED_STATE_LIMIT, NORMALIZED_STATE_LIMIT).flatten(1))
        if self.config.differences or self.config.binned:
            seen.append(self._in_intervals(state).flatten(1))
        return cast(torch.Tensor, self.encoder(torch.cat(seen, dim=-1)))

    def fit_intervals(self, states: torch.Tensor) -> None:
        """Take the differences' scale, their root mean square, and all intervals from ``states [N, S]``.

        Without differences and binned entries there is nothing to take.
        """
        if self.config.differences:
            self.difference_std.copy_(self._between(states).square().mean(0).sqrt().clamp_min(MIN_DIFFERENCE_STD))
        if not len(self.bin_low):
            return
        some = self._cut(states[:: -(-len(states) // EDGE_SAMPLES)])
        levels = torch.linspace(0.0, 1.0, BINS + 1, device=states.device)
        # Distinct ones: what rests, and what is absent and zero, would take most of the intervals.
        edges = torch.stack([torch.quantile(values.unique(), levels) for values in some.T])
        self.bin_low.copy_(edges[:, :-1])
        self.bin_width.copy_(edges.diff().clamp_min(MIN_BIN_WIDTH))

    def _in_intervals(self, state: torch.Tensor) -> torch.Tensor:
        """``[..., S] -> [..., N, BINS]``: of each interval how much lies below, from -1 to 1."""
        return 2.0 * ((self._cut(state)[..., None] - self.bin_low) / self.bin_width).clamp(0.0, 1.0) - 1.0

    def _cut(self, state: torch.Tensor) -> torch.Tensor:
        """``[..., S] -> [..., N]``: what is seen in intervals, in physical units."""
        if not self.config.binned:
            return self._between(state)
        entries = state.index_select(-1, self.binned)
        return torch.cat([self._between(state), entries], -1) if self.config.differences else entries

    def _between(self, state: torch.Tensor) -> torch.Tensor:
        """``[..., S] -> [..., D]``, in physical units."""
        return state.index_select(-1, self.minuends) - state.index_select(-1, self.subtrahends)

    def normalize_actions(self, actions: torch.Tensor) -> torch.Tensor:
        """Physical units to [-1, 1]."""
        return 2.0 * (actions - self.action_low) / (self.action_high - self.action_low) - 1.0

    def denormalize_actions(self, normalized: torch.Tensor) -> torch.Tensor:
        """[-1, 1] to physical units, clamped to the robot's bounds."""
        unit = (normalized.clamp(-1.0, 1.0) + 1.0) / 2.0
        return self.action_low + unit * (self.action_high - self.action_low)

    def committed_rows(self, prefix_length: torch.Tensor) -> torch.Tensor:
        """``[B, H]``: 1 in the first ``prefix_length [B]`` rows of each chunk, 0 in the others."""
        rows = torch.arange(self.config.horizon, device=prefix_length.device)
        return (rows[None] < prefix_length[:, None]).to(self.state_mean.dtype)

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, embedding: torch.Tensor, committed: torch.Tensor
    ) -> torch.Tensor:
        """The denoiser's prediction ``[B, H, A]``, in normalised units; ``committed [B, H]`` marks given rows."""
        return cast(torch.Tensor, self.denoiser(noisy, timestep, embedding, committed))
