"""Image encoders: camera frames to a vector of features, once for a chunk.

Shapes: ``N`` frames, ``H`` height and width in pixels, ``E`` instruction embedding size, ``F`` features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from chunkcast.training.errors import TrainingError

CONVOLUTIONAL = "conv"
"""The encoder that is trained from scratch; any other name is timm's."""

PIXEL_MEAN = 110.0
PIXEL_SCALE = 60.0
"""Of the 256 levels: about a picture's mean and standard deviation."""

PATCH = 4
"""Pixels to a side that the convolutional encoder's first layer sees as one position, with all their values: nothing is
lost, and a processor multiplies 48 channels at a time where it would 3."""

CHANNELS = (64, 128, 256)
"""Of the convolutional encoder's stages, each of half the size of the one before."""

KEYPOINTS = 64
READ_CHANNELS = 64


class ImageEncoder(nn.Module, ABC):
    """Frames to features."""

    @abstractmethod
    def forward(self, frames: torch.Tensor, instruction: torch.Tensor) -> torch.Tensor:
        """``[N, F]`` of ``frames [N, H, H, 3]``, 0 to 255 in any dtype, and ``instruction [N, E]``, normalised."""


def make_image_encoder(
    name: str, *, size: int, features: int, instruction_size: int, pretrained: bool = False
) -> ImageEncoder:
    """The encoder called ``name``.

    Args:
        pretrained: with its published weights, where it has some; a checkpoint brings its own.

    Raises:
        TrainingError: there is none of that name, or none for frames of that size.
    """
    if name == CONVOLUTIONAL:
        return ConvolutionalEncoder(size, features, instruction_size)
    return TimmEncoder(name, size, features, instruction_size, pretrained)


def centred(frames: torch.Tensor) -> torch.Tensor:
    """``[N, H, W, 3]``, 0 to 255 -> ``[N, 3, H, W]``, of about unit size."""
    return (frames.float() * (1.0 / PIXEL_SCALE) - PIXEL_MEAN / PIXEL_SCALE).permute(0, 3, 1, 2)


class ConvolutionalEncoder(ImageEncoder):
    """A small residual network without normalisation layers, modulated by the instruction (FiLM, Perez et al. 2018).

    It is read in two ways: where each of ``KEYPOINTS`` features lies (a spatial softmax, Levine et al. 2016,
    arXiv:1504.00702, section 5.1), which tells a small object's place to a fraction of a cell; and the last stage as it
    is.

    Args:
        size: of a frame, a multiple of 16.
        features: ``F``.
        instruction_size: ``E``.
    """

    grid: torch.Tensor

    def __init__(self, size: int, features: int, instruction_size: int) -> None:
        super().__init__()
        if size % (PATCH * 4):
            raise TrainingError(f"frames are {size} pixels, the convolutional encoder needs a multiple of {PATCH * 4}")
        self.first = nn.Conv2d(3 * PATCH**2, CHANNELS[0], 3, padding=1)
        self.stages = nn.ModuleList(ModulatedBlock(channels, instruction_size) for channels in CHANNELS)
        self.halvings = nn.ModuleList(
            nn.Conv2d(channels, following, 3, stride=2, padding=1) for channels, following in pairwise(CHANNELS)
        )
        self.keypoints = nn.Conv2d(CHANNELS[1], KEYPOINTS, 1)
        self.read = nn.Conv2d(CHANNELS[2], READ_CHANNELS, 1)
        cells = size // PATCH // 2
        axis = torch.linspace(-1.0, 1.0, cells)
        grid = torch.stack([axis[None].expand(cells, cells), axis[:, None].expand(cells, cells)], -1)
        self.register_buffer("grid", grid.reshape(cells**2, 2).contiguous())  # [cells^2, (x, y)]
        self.out = nn.Linear(2 * KEYPOINTS + READ_CHANNELS * (cells // 2) ** 2, features)

    def forward(self, frames: torch.Tensor, instruction: torch.Tensor) -> torch.Tensor:
        """See ``ImageEncoder.forward``."""
        patches = functional.pixel_unshuffle(centred(frames), PATCH)  # [N, 48, H/4, W/4]
        stream = self.first(patches.contiguous(memory_format=torch.channels_last))
        stream = self.halvings[0](self.stages[0](stream, instruction))
        middle = self.stages[1](stream, instruction)  # [N, 128, H/8, W/8]
        last = self.stages[2](self.halvings[1](middle), instruction)  # [N, 256, H/16, W/16]
        attention = self.keypoints(functional.relu(middle)).flatten(2).float().softmax(-1)  # [N, K, cells^2]
        places = (attention @ self.grid).flatten(1)  # [N, 2K]
        seen = self.read(functional.relu(last)).flatten(1)
        return cast(torch.Tensor, self.out(torch.cat([places.to(seen.dtype), functional.relu(seen)], -1)))


class ModulatedBlock(nn.Module):
    """``stream + second(relu((1 + scale) * first(relu(stream)) + shift))``, scale and shift from the instruction.

    Begins as the identity, which is why it needs no normalisation (SkipInit, De & Smith 2020, arXiv:2002.10444): one
    that would cost as much as the convolutions, and cannot be quantised.
    """

    def __init__(self, channels: int, instruction_size: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(instruction_size, 2 * channels)
        for parameter in (*self.second.parameters(), *self.film.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, stream: torch.Tensor, instruction: torch.Tensor) -> torch.Tensor:
        """``[N, C, H, W]`` in and out."""
        scale, shift = self.film(instruction)[..., None, None].chunk(2, dim=1)  # [N, C, 1, 1] each
        hidden = functional.relu((1.0 + scale) * self.first(functional.relu(stream)) + shift)
        return cast(torch.Tensor, stream + self.second(hidden))


class TimmEncoder(ImageEncoder):
    """Any of timm's encoders, its features modulated by the instruction.

    Args:
        name: timm's, such as ``resnet18``; with ``:scratch`` after it there are no published weights.
        size: of a frame.
        features: ``F``.
        instruction_size: ``E``.
        pretrained: with the published weights.
    """

    def __init__(self, name: str, size: int, features: int, instruction_size: int, pretrained: bool) -> None:
        super().__init__()
        try:
            import timm
        except ModuleNotFoundError:
            raise TrainingError(
                f"--image-encoder {name} is timm's, which is not installed; run pip install timm"
            ) from None
        model, _, scratch = name.partition(":")
        if not timm.is_model(model) or scratch not in ("", "scratch"):
            raise TrainingError(f"unknown --image-encoder {name!r}; expected {CONVOLUTIONAL} or a model of timm's")
        options = {"img_size": size} if "vit" in model else {}
        try:
            self.backbone = timm.create_model(model, pretrained=pretrained and not scratch, num_classes=0, **options)
        except Exception as error:  # whatever a download raises, and a size that the model cannot take
            reason = str(error).splitlines()[0]
            raise TrainingError(
                f"{model} cannot be had for {size} pixels ({reason}); without its published weights it is "
                f"--image-encoder {model}:scratch"
            ) from None
        channels = self.backbone.num_features
        self.film = nn.Linear(instruction_size, 2 * channels)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        self.out = nn.Linear(channels, features)

    def forward(self, frames: torch.Tensor, instruction: torch.Tensor) -> torch.Tensor:
        """See ``ImageEncoder.forward``."""
        scale, shift = self.film(instruction).chunk(2, dim=1)
        return cast(torch.Tensor, self.out((1.0 + scale) * self.backbone(centred(frames)) + shift))
