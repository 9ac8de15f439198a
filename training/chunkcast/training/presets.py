"""Settings that hold where no flag says otherwise, by the preset, the denoiser and the target that are named."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from chunkcast.training.train_config import TrainConfig

Settings = dict[str, Any]

PRESETS: dict[str, Settings] = {
    "default": {},
    # The seed's table: its head, target, optimiser and batches, and one window of a demonstration in an epoch.
    "tinyvla-73m": {
        "denoiser": "unet",
        "width": 256,
        "blocks": 3,
        "embedding_size": 512,
        "horizon": 20,
        "execute_steps": 8,
        "prediction_type": "epsilon",
        "loss_weighting": "uniform",
        "noise_only_fraction": 0.0,
        "chunk_discount": 1.0,
        "huber": 0.0,
        "differences": False,
        "motion_dropout": 0.0,
        "max_committed_steps": 0,
        "epochs": 10,
        "windows_per_episode": 1,
        "batch_size": 8,
        "learning_rate": 1e-4,
        "adam_beta2": 0.95,
        "warmup_steps": 0,
        "ema_decay": 0.0,
        "validation_windows": 256,
    },
}
"""Whatever is not named is as in ``TrainConfig``."""

BY_DENOISER: dict[str, Settings] = {
    # Widths that suit the MLP would make a U-Net of half a billion parameters; both want smaller steps, and more.
    "unet": {"width": 64, "blocks": 3, "embedding_size": 256, "batch_size": 128, "learning_rate": 1e-3},
    "transformer": {"width": 128, "blocks": 4, "embedding_size": 256, "batch_size": 128, "learning_rate": 1e-3},
}

BY_PREDICTION_TYPE: dict[str, Settings] = {
    # At the last timestep the noise is what the network is given: there is nothing to learn there. And sampling needs
    # the noise's mean, which is what squared errors teach.
    "epsilon": {"noise_only_fraction": 0.0, "huber": 0.0},
    # Where little noise was added the velocity is that noise: a network that hardly met such timesteps samples garbage,
    # and its errors there are the noise's.
    "v_prediction": {"noise_only_fraction": 0.0, "huber": 0.0},
}


FINE_TUNING: Settings = {
    # A tenth of a new policy's rate: the old tasks' weights are good already. The last checkpoint is played, since what
    # was forgotten shows in success alone.
    "learning_rate": 3e-4,
    "epochs": 30,
    "rollout_every": 1_000_000,
}
"""Where --rehearsal is named."""

WITH_CAMERAS: Settings = {
    # A frame costs a thousand times what a state does: smaller steps, and each frame's worth taken more often.
    "batch_size": 128,
    "learning_rate": 1e-3,
    "noise_draws": 4,
    "epochs": 30,
    "validation_windows": 1024,
}
"""Where --cameras are named."""


def default_settings(arguments: Sequence[str]) -> TrainConfig:
    """What holds where no flag of ``arguments`` says otherwise: the preset's settings, and before them the denoiser's
    and the target's. The folders are missing.
    """
    import tyro

    named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flags in (("--preset",), ("--denoiser",), ("--prediction-type", "--prediction_type")):
        named.add_argument(*flags, nargs="?")  # tyro refuses one without a value, or with an unknown one
    named.add_argument("--cameras", nargs="*")
    named.add_argument("--rehearsal", nargs="?")
    given = named.parse_known_args(arguments)[0]
    settings = {
        **(WITH_CAMERAS if given.cameras else {}),
        **(FINE_TUNING if given.rehearsal else {}),
        **BY_DENOISER.get(given.denoiser, {}),
        **BY_PREDICTION_TYPE.get(given.prediction_type, {}),
        **PRESETS.get(given.preset, {}),
    }
    return TrainConfig(data=tyro.MISSING, out=tyro.MISSING, **settings)


def config_of(arguments: Sequence[str]) -> TrainConfig:
    """The settings of ``chunkcast-train`` with these flags."""
    import tyro

    return tyro.cli(TrainConfig, args=list(arguments), default=default_settings(arguments))
