"""``chunkcast-health measure``: its flags, and what it prints and writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from chunkcast.training.seeds import CALIBRATION_SEED


@dataclass(frozen=True)
class Measure:
    """Play a bundle through the server and write into it how often it succeeds, by task: what is expected of it."""

    bundle: Positional[Path]
    """The bundle."""
    episodes: int = 20
    """Episodes of each task."""
    seed: int = CALIBRATION_SEED
    """First episode seed; of no demonstrations, and not of evaluations (1000000), which would agree by themselves."""
    workers: int = os.cpu_count() or 1
    """Parallel robots."""
    json: Path | None = None
    """File for everything that chunkcast-sim measured."""


def measure_command(config: Measure) -> None:
    """Play, write, and print.

    Raises:
        TrainingError: bad flags, seeds of the demonstrations, or a bundle that cannot be played.
    """
    from rich.console import Console

    from chunkcast.training.export.bundle_writer import read_spec, write_expectations
    from chunkcast.training.files import write_json
    from chunkcast.training.health.messages import expectation_json, measured_messages
    from chunkcast.training.health.monitor import require_unseen
    from chunkcast.training.health.rollouts import Rollouts
    from chunkcast.training.health.tables import print_expectations

    rollouts = Rollouts(config.episodes, config.seed, config.workers)
    spec = read_spec(config.bundle)
    require_unseen(spec, config.seed, config.seed + config.episodes - 1, CALIBRATION_SEED)
    with Console(stderr=True).status(f"playing {config.episodes} episodes of each task"):
        summary = rollouts.play_bundle(config.bundle, "--health-share", "0")
    if config.json:
        write_json(config.json, summary)
    expected = measured_messages(summary)
    write_expectations(config.bundle, expected)
    print_expectations([expectation_json(each) for each in expected])
    print(config.bundle / "policy.json")
