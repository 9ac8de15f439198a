"""``chunkcast-health monitor``: its flags, and what it prints and writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from chunkcast.training.errors import TrainingError
from chunkcast.training.seeds import MONITOR_SEED


@dataclass(frozen=True)
class Monitor:
    """Play a bundle through the server and write into it what its chunks are judged by while it serves: references and
    thresholds of the health signals, from successful episodes.
    """

    bundle: Positional[Path]
    """The bundle."""
    episodes: int = 30
    """Episodes of each task that references are fitted on; twice as many others give the thresholds."""
    seed: int = MONITOR_SEED
    """First episode seed; three times --episodes are taken. Of no demonstrations, calibrations or evaluations."""
    false_alarms: float = 0.03
    """Share of healthy, successful episodes that may be called unhealthy at any of their chunks (conformal alpha)."""
    execute_steps: int | None = None
    """Control ticks from one request to the next, as the robots will play it; what the policy advises by default.
    Signals that compare two requests are measured only at this pace."""
    workers: int = os.cpu_count() or 1
    """Parallel robots."""
    json: Path | None = None
    """File for the thresholds."""


def monitor_command(config: Monitor) -> None:
    """Calibrate a bundle's health signals; print and write the thresholds.

    Raises:
        TrainingError: bad flags, or a bundle without enough successful episodes.
    """
    from google.protobuf import json_format
    from rich.console import Console

    from chunkcast.training.files import write_json
    from chunkcast.training.health.monitor import calibrate_monitor
    from chunkcast.training.health.rollouts import Rollouts
    from chunkcast.training.health.tables import print_thresholds

    rollouts = Rollouts(config.episodes, config.seed, config.workers)
    if not 0.0 < config.false_alarms < 1.0:
        raise TrainingError(f"--false-alarms is {config.false_alarms}, expected above 0 and below 1")
    if config.execute_steps is not None and config.execute_steps < 1:
        raise TrainingError(f"--execute-steps is {config.execute_steps}, expected 1 or more")
    with Console(stderr=True).status("reading the bundle") as status:
        health = calibrate_monitor(config.bundle, rollouts, config.false_alarms, config.execute_steps, status.update)
    print_thresholds(health)
    if config.json:
        write_json(config.json, json_format.MessageToDict(health, preserving_proto_field_name=True))
    print(config.bundle / "policy.json")
