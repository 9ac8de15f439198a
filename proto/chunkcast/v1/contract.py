"""When one version of a policy can stand in for another: the comparison that client and server share."""

from __future__ import annotations

from chunkcast.v1 import policy_pb2 as pb


def contract_difference(served: pb.PolicySpec, other: pb.PolicySpec) -> str:
    """What a robot that plays ``served`` would notice of ``other`` in its place; empty if nothing.

    Observations, action elements with their bounds, control rate, horizon and observation steps must be the same, and
    every instruction must be known still.
    """

    def observations(spec: pb.PolicySpec) -> list[tuple[str, int, tuple[int, ...], tuple[tuple[str, str], ...]]]:
        return sorted(
            (
                entry.key,
                int(entry.dtype),
                tuple(entry.shape),
                tuple((element.name, element.unit) for element in entry.elements),
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
    known = {instruction.text for instruction in other.instructions}
    if missing := [instruction.text for instruction in served.instructions if instruction.text not in known]:
        return f"it does not know the instructions {missing[:8]}"
    return ""
