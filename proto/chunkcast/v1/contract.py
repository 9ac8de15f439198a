"""What the parts hold a policy to alike: its actions' bounds, when one version can stand in for another, and what its
health signals are called and measured on.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.tensors import DTYPES

ROUNDING = 1e-5
"""As a share of an action's range, by which an action may lie beyond its bounds: it was computed in float32."""

PROPORTIONS_SLACK = 0.02
"""As a share, by which a picture's height over its width may differ: a sensor's may be no whole number of the
other's."""


MAX_ACTION = 1e30
"""Bounds are compared in float32; an action without bounds is one that nobody can guard."""

MIN_RATE_HZ, MAX_RATE_HZ = 1e-3, 1e6
"""Of control: a tick is a time that one can wait for."""

MAX_MESSAGE = 1000
"""Characters of an error's message that quotes what another party says."""


def one_line(text: str, most: int = MAX_MESSAGE) -> str:
    """``text`` as one printable line of at most so many characters: it may quote anything."""
    cut = text if len(text) <= most else f"{text[: most - 3]}..."
    return cut if cut.isprintable() else "".join(each if each.isprintable() else "?" for each in cut)


def action_limits(action: pb.ActionSpec) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The least and the greatest action, float32 ``[A]`` each: the bounds, with room for rounding."""
    low = np.array([element.low for element in action.elements])
    high = np.array([element.high for element in action.elements])
    slack = ROUNDING * (high - low)
    return (low - slack).astype(np.float32), (high + slack).astype(np.float32)


def contract_difference(served: pb.PolicySpec, other: pb.PolicySpec) -> str:
    """What a robot that plays ``served`` would notice of ``other`` in its place; empty if nothing.

    Observations with their cameras, action elements with their bounds, control rate, horizon, observation steps and the
    longest committed prefix must be the same, every instruction and task's name must be known still, and free text
    taken where it was.
    """

    def observations(spec: pb.PolicySpec) -> list[tuple[str, int, tuple[int, ...], tuple[tuple[str, str], ...], str]]:
        return sorted(
            (
                entry.key,
                int(entry.dtype),
                tuple(entry.shape),
                tuple((element.name, element.unit) for element in entry.elements),
                " ".join(str(entry.camera).split()) if entry.HasField("camera") else "",
            )
            for entry in spec.observations
        )

    def actions(spec: pb.PolicySpec) -> list[tuple[str, str, float, float]]:
        return [(element.name, element.unit, element.low, element.high) for element in spec.action.elements]

    for what, mine, theirs in (
        ("observations", observations(served), observations(other)),
        ("observation_steps", served.observation_steps, other.observation_steps),
        ("action elements", actions(served), actions(other)),
        ("control_rate_hz", served.action.control_rate_hz, other.action.control_rate_hz),
        ("horizon", served.action.horizon, other.action.horizon),
        ("max_committed_steps", served.action.max_committed_steps, other.action.max_committed_steps),
    ):
        if mine != theirs:
            return f"{what} {theirs}, served {mine}"
    known = set(_texts(other))
    if missing := [text for text in _texts(served) if text not in known]:
        return f"it does not know the instructions {missing[:8]}"
    if served.text_encoder.sha256 and not other.text_encoder.sha256:
        return "it takes no free text"
    return ""


def _texts(spec: pb.PolicySpec) -> list[str]:
    """Whatever a robot may be told without an encoder."""
    return [text for each in spec.instructions for text in (each.text, each.task) if text]


def camera_entries(spec: pb.PolicySpec) -> list[pb.ObservationEntry]:
    """The observation entries that are cameras' pictures."""
    return [entry for entry in spec.observations if entry.HasField("camera")]


def same_proportions(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether pictures of these heights and widths, pixels, show the same when brought to one size."""
    return abs(size[0] * other[1] - size[1] * other[0]) <= PROPORTIONS_SLACK * size[0] * other[1]


def state_entries(spec: pb.PolicySpec) -> list[pb.ObservationEntry]:
    """The observation entries that health signals are measured on: floating-point ones, no images."""
    return [entry for entry in spec.observations if DTYPES[entry.dtype].kind == "f"]


def signal_name(signal: pb.HealthSignal.ValueType) -> str:
    """A health signal in lower case, such as ``novelty``; empty for none, a number for one that is not known here."""
    if signal == pb.HEALTH_SIGNAL_UNSPECIFIED:
        return ""
    known = signal in pb.HealthSignal.values()
    return pb.HealthSignal.Name(signal).removeprefix("HEALTH_SIGNAL_").lower() if known else str(int(signal))
