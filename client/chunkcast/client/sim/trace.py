"""What passed between a robot and its server in an episode: the observations that were sent and their chunks.

One NumPy file an episode. ``n`` requests, ``H`` horizon, ``A`` action size:

::

    step               int64 [n]            control tick of each request
    actions            float32 [n, H, A]    the chunk that answered it
    observation/KEY    [n, ...]             what was sent, one array for each observation entry
    instruction        str                  what the policy was told to do
    success            bool                 what came of it
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.client import ActionChunk

OBSERVATION_PREFIX = "observation/"


class Trace:
    """Grows with each chunk that arrives."""

    def __init__(self) -> None:
        self._seen: dict[int, Mapping[str, npt.NDArray[Any]]] = {}
        self._chunks: list[ActionChunk] = []

    def add(self, observation: Mapping[str, npt.NDArray[Any]], tick: int, chunks: Sequence[ActionChunk]) -> None:
        """A tick is over.

        Args:
            observation: what was seen at ``tick``.
            chunks: all of the episode so far.
        """
        self._seen[tick] = observation
        self._chunks += chunks[len(self._chunks) :]

    def write(self, file: Path, *, instruction: str, success: bool) -> None:
        """Write the file aside, then rename it."""
        sent = [self._seen[chunk.step] for chunk in self._chunks]
        arrays: dict[str, Any] = {
            f"{OBSERVATION_PREFIX}{key}": np.stack([each[key] for each in sent]) for key in (sent[0] if sent else ())
        }
        arrays["step"] = np.array([chunk.step for chunk in self._chunks], np.int64)
        arrays["actions"] = np.array([chunk.actions for chunk in self._chunks], np.float32)
        arrays["instruction"], arrays["success"] = np.array(instruction), np.array(success)
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}")
        with aside.open("wb") as stream:
            np.savez_compressed(stream, **arrays)
        os.replace(aside, file)
