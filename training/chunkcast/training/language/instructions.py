"""What a policy can be told: each task's instruction and its paraphrases, and their embeddings.

A policy without language is told its task by a plain name, whose embedding is one-hot; a sentence encoder's embedding
takes the same place. The network sees embeddings only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

MIN_SCALE = 1e-6


@dataclass(frozen=True)
class EncoderIdentity:
    """The text encoder that embeddings come from.

    Attributes:
        name: such as ``all-minilm-l6-v2``.
        sha256: of its files; see ``chunkcast.language``.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class Instructions:
    """The instructions of ``K`` tasks, ``P`` phrases each.

    Attributes:
        tasks: plain names, sorted; a task's place here is its index.
        phrases: of each task, ``P`` texts: the instruction first, then the paraphrases that it is trained with.
        embeddings: float32 ``[K, P, E]``.
        encoder: what made the embeddings; ``None`` where they are one-hot.
    """

    tasks: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]
    embeddings: torch.Tensor
    encoder: EncoderIdentity | None

    @property
    def size(self) -> int:
        """``E``."""
        return self.embeddings.shape[2]

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean embedding, float32 ``[E]``, and the root mean square distance from it, an entry, float32 ``[]``.

        A sentence encoder's vectors have a mean in common and entries of 1 / sqrt(E); a network learns sooner from
        entries of order one. One-hot vectors stay as they are.
        """
        if self.encoder is None:
            return torch.zeros(self.size), torch.ones(())
        flat = self.embeddings.flatten(0, 1)
        mean = flat.mean(0)
        return mean, (flat - mean).square().mean().sqrt().clamp_min(MIN_SCALE)

    def facts(self) -> dict[str, Any]:
        """All but the embeddings, for JSON."""
        encoder = self.encoder and {"name": self.encoder.name, "sha256": self.encoder.sha256}
        return {"tasks": self.tasks, "phrases": self.phrases, "encoder": encoder}

    @classmethod
    def from_facts(cls, facts: dict[str, Any], embeddings: torch.Tensor) -> Instructions:
        """The inverse of ``facts``."""
        return cls(
            tasks=tuple(facts["tasks"]),
            phrases=tuple(tuple(phrases) for phrases in facts["phrases"]),
            embeddings=embeddings,
            encoder=EncoderIdentity(**facts["encoder"]) if facts["encoder"] else None,
        )


def task_names(tasks: Sequence[str]) -> Instructions:
    """Each task told by its name alone."""
    return Instructions(tuple(tasks), tuple((task,) for task in tasks), torch.eye(len(tasks))[:, None], None)
