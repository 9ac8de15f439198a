"""Values of flags that other modules know too. Imports nothing: a command without its extra says so."""

from __future__ import annotations

from typing import Literal

ProviderChoice = Literal["auto", "tensorrt", "cuda", "cpu"]
"""Of an execution provider of ONNX Runtime."""
