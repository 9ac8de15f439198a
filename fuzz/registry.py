"""The fuzz targets by name. A target's module is imported late, so that what it imports can be instrumented.

A module has::

    def run(data: bytes) -> None         reads data; whatever it raises is a finding
    def seeds() -> dict[str, bytes]      valid inputs and near misses, by name
    mutate: Mutator                      changes an input within its format
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz.checks import ROOT

CORPUS = ROOT / "fuzz" / "corpus"
CRASHES = ROOT / "fuzz" / "crashes"

Mutate = Callable[[bytes, int], bytes]
"""libFuzzer's own mutation of bytes, to at most so many."""
Mutator = Callable[[bytes, int, int, Mutate], bytes]
"""An input, the most bytes, a seed, and libFuzzer's mutation, to another input."""


@dataclass(frozen=True)
class Target:
    """One decoder.

    Attributes:
        module: where it is.
        instrumented: packages whose coverage guides the search.
        most_bytes: of an input that the search makes.
    """

    module: str
    instrumented: tuple[str, ...] = ("chunkcast",)
    most_bytes: int = 4096

    def load(self) -> Loaded:
        """Import it."""
        module: Any = importlib.import_module(self.module)
        return Loaded(module.run, module.seeds, module.mutate)


@dataclass(frozen=True)
class Loaded:
    """What a target's module has; see this module."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Mapping[str, bytes]]
    mutate: Mutator


JSON = ("chunkcast", "google")
"""Protobuf's own reading of JSON is Python too."""

TARGETS: dict[str, Target] = {
    "tensor": Target("fuzz.targets.tensor"),
    "image": Target("fuzz.targets.image", ("chunkcast", "PIL"), 16384),
    "observation": Target("fuzz.targets.observation", ("chunkcast", "PIL")),
    "spec": Target("fuzz.targets.spec", JSON, 16384),
    "bundle": Target("fuzz.targets.bundle", JSON, 16384),
    "health-reference": Target("fuzz.targets.health_reference"),
    "text-encoder": Target("fuzz.targets.text_encoder", most_bytes=8192),
    "admin": Target("fuzz.targets.admin"),
    "answer": Target("fuzz.targets.answer"),
}


def corpus_files(name: str) -> list[Path]:
    """A target's inputs that lie in the repository."""
    return sorted(file for file in (CORPUS / name).glob("*") if file.is_file())
