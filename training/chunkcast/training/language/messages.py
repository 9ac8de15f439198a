"""Instructions as they stand in a bundle's specification, and from when on a sentence is none of them."""

from __future__ import annotations

import numpy as np

from chunkcast.training.language.instructions import Instructions
from chunkcast.v1 import policy_pb2 as pb

DEFAULT_SIMILARITY = 0.6
"""Where no task has a paraphrase; about what MetaWorld's table gives."""
SIMILARITY_QUANTILE = 0.01
"""All but one in a hundred paraphrases are nearer to another of their task than a sentence must be."""


def instruction_messages(instructions: Instructions) -> list[pb.Instruction]:
    """Each task's instruction with its embedding, and the paraphrases without: a server that takes free text embeds
    them itself.
    """
    messages = []
    for task, phrases, embeddings in zip(
        instructions.tasks, instructions.phrases, instructions.embeddings, strict=True
    ):
        text, *paraphrases = dict.fromkeys(phrases)
        messages.append(
            pb.Instruction(
                text=text,
                embedding=embeddings[0].tolist(),
                task=task if task != text else "",
                paraphrases=paraphrases,
            )
        )
    return messages


def text_encoder_message(instructions: Instructions) -> pb.TextEncoder | None:
    """The encoder that free text needs; ``None`` where tasks are told by name."""
    if instructions.encoder is None:
        return None
    return pb.TextEncoder(
        name=instructions.encoder.name,
        sha256=instructions.encoder.sha256,
        min_similarity=least_similarity(instructions),
    )


def least_similarity(instructions: Instructions) -> float:
    """The cosine below which a sentence is told to be none of the instructions.

    Each phrase in turn is taken for a new one: its cosine with the nearest other phrase of its own task.
    """
    nearest = []
    for phrases, embeddings in zip(instructions.phrases, instructions.embeddings.numpy(), strict=True):
        # A task with fewer phrases than others says some of them twice.
        distinct = embeddings[[phrases.index(phrase) for phrase in dict.fromkeys(phrases)]]
        cosines = distinct @ distinct.T
        np.fill_diagonal(cosines, -1.0)
        if len(distinct) > 1:
            nearest.extend(cosines.max(axis=1))
    if not nearest:
        return DEFAULT_SIMILARITY
    return round(float(np.quantile(nearest, SIMILARITY_QUANTILE)), 3)
