"""How chunks are played: a robot's choices, and whether they fit a policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from chunkcast.client.wire import require_quality
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import MAX_ACTION, MAX_RATE_HZ, MIN_RATE_HZ

Overlap = Literal["replace", "ensemble", "real-time-chunking"]
Starvation = Literal["hold", "decelerate", "stop"]
OnUnhealthy = Literal["ignore", "slow", "stop"]


@dataclass(frozen=True)
class PlaybackConfig:
    """How chunks are played. Checked against the policy by ``require_fits``.

    Attributes:
        execute_steps: ticks from one request to the next, 1 to the horizon; ``None`` for what the policy advises.
        overlap: what happens where a new chunk and the one being played know the same tick. ``replace`` switches;
            ``ensemble`` averages; ``real-time-chunking`` sends the actions that will play while inference runs, for the
            policy to continue (which it must have learned: ``ActionSpec.max_committed_steps``).
        patience: the share of a control period that a tick may wait for a chunk that is due; then the robot plays on
            from the old one.
        starvation: what to play when no chunk knows the tick. ``hold`` repeats the last action, right for positions;
            ``decelerate`` goes from it to ``rest_action``, right for velocities and displacements; ``stop`` fails.
        max_starved_ticks: after so many such ticks in a row, fail: the robot is then stopped.
        rest_action: the action that moves nothing; zeros by default.
        rest_elements: names of the action elements that ``decelerate`` brings to rest, such as an arm's displacement;
            the others hold, as a gripper should that holds something. ``None`` for all.
        decelerate_ticks: in how many ticks, at most ``max_starved_ticks``, ``decelerate`` comes to rest; ``None`` for
            all of them.
        on_unhealthy: what to do once the server judges the policy out of its element. ``ignore`` plays on, and
            ``on_chunk`` sees every judgement; ``slow`` plays actions at ``slow_share`` of their distance from
            ``rest_action`` until the episode ends (a slowed arm is itself unlike those that went well, so that it would
            not be judged healthy again), right for velocities and displacements only; ``stop`` fails with
            PolicyUnhealthy: the robot is stopped.
        slow_share: see ``slow``; above 0 and below 1.
        slow_elements: names of the action elements that ``slow`` is right for, such as an arm's displacement and not
            its gripper's effort, which holds something; ``None`` for all.
        simulated_delay: for simulations, whose time is their ticks: chunks are taken up exactly so many ticks after
            their request, and waited for. ``None`` on a robot.
        image_quality: send cameras' pictures as JPEG of this quality, 1 to 100; ``None`` sends them as the client
            does: as they are, where it was made without a quality.
    """

    execute_steps: int | None = None
    overlap: Overlap = "replace"
    patience: float = 0.5
    starvation: Starvation = "hold"
    max_starved_ticks: int = 10
    rest_action: Sequence[float] | None = None
    rest_elements: Sequence[str] | None = None
    decelerate_ticks: int | None = None
    on_unhealthy: OnUnhealthy = "ignore"
    slow_share: float = 0.5
    slow_elements: Sequence[str] | None = None
    simulated_delay: int | None = None
    image_quality: int | None = None


def require_fits(
    config: PlaybackConfig, spec: pb.PolicySpec, execute_steps: int, rest: npt.NDArray[np.float32], timeout: float
) -> None:
    """Check a configuration against the policy that is to be played.

    Args:
        execute_steps, rest: the configuration's, or what stands for them where it leaves them open.

    Raises:
        ValueError: it does not fit.
    """
    require_quality(config.image_quality)
    action = spec.action
    if not 1 <= execute_steps <= action.horizon:
        raise ValueError(
            f"execute_steps is {config.execute_steps}, expected 1 to {action.horizon}, the policy's horizon"
        )
    _require_playable(action)
    if not 0.0 < timeout < math.inf:
        raise ValueError(f"timeout is {timeout}, expected seconds above 0")
    if config.overlap == "real-time-chunking" and not action.max_committed_steps:
        raise ValueError(
            f"{spec.name} has not learned to continue committed actions (max_committed_steps is 0); train it "
            "with --max-committed-steps, or play it with overlap='replace' or 'ensemble'"
        )
    if config.overlap not in get_args(Overlap) or config.starvation not in get_args(Starvation):
        raise ValueError(
            f"overlap is {config.overlap!r} and starvation {config.starvation!r}, expected one of "
            f"{', '.join(get_args(Overlap))}, and one of {', '.join(get_args(Starvation))}"
        )
    if rest.shape != (len(action.elements),) or not np.isfinite(rest).all():
        expected = f"[{len(action.elements)}], finite"
        raise ValueError(f"rest_action has shape {list(rest.shape)}, expected {expected}")
    bounds = [(element.low, element.high) for element in action.elements]
    inside = all(low <= value <= high for value, (low, high) in zip(rest.tolist(), bounds, strict=True))
    if not inside and (config.starvation == "decelerate" or config.rest_action is not None):
        raise ValueError(f"rest_action is {rest.tolist()}, expected within the action bounds {bounds}")
    if not 0 <= config.max_starved_ticks < math.inf or not 0.0 <= config.patience <= 1.0:
        raise ValueError(
            f"max_starved_ticks is {config.max_starved_ticks} and patience {config.patience}, expected 0 or more "
            "and 0 to 1"
        )
    delay = config.simulated_delay
    # A chunk is played from the tick at which it is taken up until the next one is.
    if delay is not None and (delay < 0 or delay + max(delay, execute_steps) > action.horizon):
        raise ValueError(
            f"simulated_delay is {delay}, expected 0 or more, and with the {max(delay, execute_steps)} steps "
            f"that are executed of each chunk at most {action.horizon}, the policy's horizon"
        )
    if config.on_unhealthy not in get_args(OnUnhealthy) or not 0.0 < config.slow_share < 1.0:
        raise ValueError(
            f"on_unhealthy is {config.on_unhealthy!r} and slow_share {config.slow_share}, expected one of "
            f"{', '.join(get_args(OnUnhealthy))}, and above 0 and below 1"
        )
    if config.on_unhealthy != "ignore" and not spec.serving_health.thresholds:
        raise ValueError(
            f"{spec.name} has no thresholds to judge health by, so on_unhealthy={config.on_unhealthy!r} would never do "
            "anything; measure them (chunkcast-health monitor), or pass on_unhealthy='ignore'"
        )
    _require_elements(config, [element.name for element in action.elements])
    if config.on_unhealthy == "slow" and not inside:
        raise ValueError(
            f"on_unhealthy='slow' needs a rest_action within the action bounds {bounds}, got {rest.tolist()}"
        )


def _require_elements(config: PlaybackConfig, names: Sequence[str]) -> None:
    """What the configuration says of single action elements, and how fast they come to rest."""
    for field, chosen in (("slow_elements", config.slow_elements), ("rest_elements", config.rest_elements)):
        if unknown := [name for name in chosen or () if name not in names]:
            raise ValueError(f"{field} names {unknown}, expected some of {names}")
    most = config.max_starved_ticks
    if config.decelerate_ticks is not None and not 1 <= config.decelerate_ticks <= most:
        raise ValueError(f"decelerate_ticks is {config.decelerate_ticks}, expected 1 to max_starved_ticks, {most}")


def _require_playable(action: pb.ActionSpec) -> None:
    """What a server says of its policy's actions can be played: it may be another program, or damaged."""
    if not all(abs(bound) <= MAX_ACTION for each in action.elements for bound in (each.low, each.high)):
        raise ValueError(f"the policy has an action without bounds; expected at most {MAX_ACTION:g}")
    if not MIN_RATE_HZ <= action.control_rate_hz <= MAX_RATE_HZ:
        raise ValueError(
            f"the policy's control_rate_hz is {action.control_rate_hz}, expected {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g}"
        )
