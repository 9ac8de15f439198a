"""Instructions as they stand in a bundle's specification, and from when on a sentence is none of them."""

from __future__ import annotations

import numpy as np

from chunkcast.training.language.instructions import Instructions
from chunkcast.v1 import policy_pb2 as pb

SIMILARITY_QUANTILE = 0.01
SIMILARITY_MARGIN = 0.1
"""A sentence may be this much further from what is known than all but one in a hundred paraphrases are from each other:
new words are new."""


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
    for embeddings in instructions.embeddings.numpy():  # [P, E]
        distinct = np.unique(embeddings, axis=0)
        cosines = distinct @ distinct.T
        np.fill_diagonal(cosines, -1.0)
        if len(distinct) > 1:
            nearest.extend(cosines.max(axis=1))
    if not nearest:
        return 0.5
    return round(float(np.quantile(nearest, SIMILARITY_QUANTILE)) - SIMILARITY_MARGIN, 3)
