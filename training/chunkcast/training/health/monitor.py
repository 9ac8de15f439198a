"""What a server judges a policy's episodes by, from episodes that went well.

Two sets of episodes are played through the server. On the traces of the first the references are fitted; the second is
judged by a server that has them, and its scores give the thresholds. So no signal is computed twice, in two ways.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from chunkcast.training.errors import TrainingError
from chunkcast.training.export.bundle_writer import read_spec, text_of_task, write_serving_health
from chunkcast.training.health.rollouts import Rollouts
from chunkcast.training.health.serving_reference import fit_reference, read_traces
from chunkcast.training.health.serving_thresholds import JudgedEpisode, fit_thresholds
from chunkcast.training.seeds import MONITOR_SEED
from chunkcast.v1 import policy_pb2 as pb

EVERY_CHUNK = ("--health-share", "1")


def calibrate_monitor(
    bundle: Path,
    rollouts: Rollouts,
    alpha: float,
    execute_steps: int | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> pb.ServingHealth:
    """Play, fit, and write references and thresholds into ``bundle``.

    Args:
        rollouts: the first set; the second has twice its episodes, on the seeds after it.
        alpha: share of healthy episodes that may be called unhealthy.
        execute_steps: ticks from one request to the next; what the policy advises by default.
        on_stage: told what is being done.

    Raises:
        TrainingError: the bundle cannot be played, or has too few successful episodes.
    """
    spec = read_spec(bundle)
    pace = pb.ServingHealth(execute_steps=execute_steps or spec.action.execute_steps)
    at_pace = ("--execute-steps", str(pace.execute_steps))
    second = replace(rollouts, episodes=2 * rollouts.episodes, seed=rollouts.seed + rollouts.episodes)
    require_unseen(spec, rollouts.seed, second.seed + second.episodes - 1, MONITOR_SEED)
    with tempfile.TemporaryDirectory(prefix="chunkcast-") as folder:
        copy, traces = Path(folder) / "bundle", Path(folder) / "traces"
        shutil.copytree(bundle, copy)
        on_stage("playing the episodes that references are fitted on")
        rollouts.play_bundle(bundle, *at_pace, "--trace", str(traces), "--health-share", "0")
        episodes = read_traces(traces)
        reference = fit_reference(bundle, spec, episodes)
        write_serving_health(copy, reference, pace)
        on_stage("playing the episodes that thresholds come from")
        played = second.play_bundle(copy, *at_pace, *EVERY_CHUNK)["each_episode"]
    texts = text_of_task(spec)
    solved = [each for each in played if each["success"]]
    # In turn, so that both halves have every instruction.
    even, odd = ([_judged(each, texts) for each in solved if each["seed"] % 2 == parity] for parity in (0, 1))
    health = pb.ServingHealth(
        thresholds=fit_thresholds(even, odd, alpha),
        false_alarm_rate=alpha,
        episodes=len(solved),
        first_seed=second.seed,
        last_seed=second.seed + second.episodes - 1,
        reference_episodes=sum(each.success for each in episodes),
        reference_first_seed=rollouts.seed,
        reference_last_seed=rollouts.seed + rollouts.episodes - 1,
        execute_steps=pace.execute_steps,
    )
    on_stage("writing the bundle")
    write_serving_health(bundle, reference, health)
    return health


def require_unseen(spec: pb.PolicySpec, first: int, last: int, other: int) -> None:
    """The policy's demonstrations are no measure of what is new to it.

    Args:
        first, last: the seeds that are to be played.
        other: a seed to propose instead.

    Raises:
        TrainingError: it was trained on one of the seeds.
    """
    if first <= spec.training.last_seed and last >= spec.training.first_seed:
        raise TrainingError(
            f"seeds {first} to {last} overlap with those of the demonstrations, {spec.training.first_seed} to "
            f"{spec.training.last_seed}; take another --seed, such as {other}"
        )


def _judged(episode: dict[str, Any], texts: dict[str, str]) -> JudgedEpisode:
    return JudgedEpisode(texts[episode["task"]], episode["health"]["highest"])
