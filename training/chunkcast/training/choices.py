"""Names that a run's settings choose from. Imports nothing heavy, so that ``--help`` is quick."""

from __future__ import annotations

from typing import Literal

PredictionType = Literal["sample", "epsilon", "v_prediction"]
"""diffusers' names: ``sample`` predicts the clean action chunk x_0, ``epsilon`` the noise, ``v_prediction`` the
velocity sqrt(abar_t) eps - sqrt(1 - abar_t) x_0 (Salimans & Ho 2022, arXiv:2202.00512, appendix D)."""

Objective = Literal["diffusion", "mip"]
"""What training minimises: the denoising loss over a diffusion process, or MIP's two regressions (see ``mip``)."""

PresetName = Literal["default", "tinyvla-73m"]

DenoiserName = Literal["mlp", "unet", "transformer"]

Precision = Literal["fp32", "int8", "fp16"]
"""Numbers that an exported graph computes in."""
