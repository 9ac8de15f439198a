"""What a robot's stream brings: an observation into a session that is in an episode already.

Input: a byte (modulo 4: which policy; its highest bit: the session is new), and a ``StreamActionsRequest``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import cache
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from PIL import JpegImagePlugin, PngImagePlugin

from chunkcast.server.engine import expected_inputs
from chunkcast.server.errors import ObservationRejected
from chunkcast.server.images import ImageDecoder
from chunkcast.server.instructions import KnownInstructions
from chunkcast.server.session import Session
from chunkcast.v1 import policy_pb2 as pb
from fuzz.checks import require, require_array, require_clear
from fuzz.mutators import as_protobuf, prefixed
from fuzz.policies import (
    EYE,
    committed_policy,
    fitting,
    hearing_policy,
    plain_policy,
    seeing_policy,
    small_encoder,
)
from fuzz.targets.image import encoded
from tests.handmade_bundle import BOUND

POLICIES = (plain_policy, committed_policy, seeing_policy, hearing_policy)
NEW_SESSION = 128
BEGUN_AT = 5
"""Step of the observation that a session in an episode has had."""

PLUGINS = (JpegImagePlugin, PngImagePlugin)

mutate = prefixed(as_protobuf)


@cache
def _policy(which: int) -> tuple[pb.PolicySpec, KnownInstructions]:
    spec = POLICIES[which]()
    return spec, KnownInstructions(spec, small_encoder() if spec.text_encoder.sha256 else None)


@cache
def _decoder() -> ImageDecoder:
    return ImageDecoder()


def run(data: bytes) -> None:
    """Offer an observation to a session; afterwards a good one is still taken."""
    which = data[0] if data else 0
    try:
        request = pb.StreamActionsRequest.FromString(data[1:])
    except DecodeError:
        return
    if request.WhichOneof("request") != "observation":
        return
    spec, instructions = _policy(which % 4)
    session, observation = Session(spec, instructions), request.observation
    if which < NEW_SESSION:
        _accept(session, spec, fitting(spec, BEGUN_AT))
    before = _state(session)
    require(isinstance(session.can_miss(observation), bool), "can_miss says neither yes nor no")
    try:
        _accept(session, spec, observation)
    except ObservationRejected as rejected:
        require_clear(rejected)
        require(rejected.code in pb.ErrorCode.values()[1:], f"an observation is refused with {int(rejected.code)}")
        require(rejected.code != pb.ERROR_CODE_INTERNAL, "an observation is called the server's failure")
        require(_state(session) == before, "a refused observation changed the session")
        _accept(session, spec, fitting(spec, 2**64 - 1))
        return
    _check_inputs(spec, session, observation)


def _accept(session: Session, spec: pb.PolicySpec, observation: pb.Observation) -> None:
    """As a stream does it, with the encoder and the pictures' decoder on their threads where they are needed."""
    if session.sees or spec.text_encoder.sha256:
        asyncio.run(_accept_elsewhere(session, spec, observation))
    else:
        session.accept(observation)


async def _accept_elsewhere(session: Session, spec: pb.PolicySpec, observation: pb.Observation) -> None:
    await session.learn(observation)
    session.accept(observation, await _decoder().decode(spec, observation))


def _state(session: Session) -> dict[str, Any]:
    """All that a session remembers; arrays and messages by identity."""
    return {
        name: [(step, id(tensors)) for step, tensors in value]
        if isinstance(value, deque)
        else value
        if isinstance(value, str | int | tuple)
        else id(value)
        for name, value in vars(session).items()
    }


def _check_inputs(spec: pb.PolicySpec, session: Session, observation: pb.Observation) -> None:
    inputs, expected = session.graph_inputs(observation), expected_inputs(spec)
    require(inputs.keys() == expected.keys(), f"the graph is given {sorted(inputs)}, it takes {sorted(expected)}")
    for name, (shape, dtype) in expected.items():
        require_array(name, inputs[name], shape, dtype)
    if "prefix_actions" in inputs:
        require(bool((np.abs(inputs["prefix_actions"]) <= 1.001 * BOUND).all()), "a committed action is out of bounds")
    if observation.HasField("noise_seed"):
        again = session.graph_inputs(observation)
        require(np.array_equal(inputs["noise"], again["noise"]), "a seed gives two noises")
    known = {instruction.text for instruction in spec.instructions}
    require(session.instruction in known, f"what was told is called {session.instruction!r}, no instruction")


def seeds() -> dict[str, bytes]:
    """An observation for each policy, and what else one may hold."""
    actions = np.zeros((2, 4), np.float32)
    made: dict[str, tuple[int, pb.Observation]] = {
        f"{build.__name__.removesuffix('_policy')}": (i, fitting(build(), 6)) for i, build in enumerate(POLICIES)
    }
    plain = plain_policy()
    made |= {
        "committed-actions": (1, fitting(committed_policy(), 6, committed_actions=actions)),
        "committed-too-many": (1, fitting(committed_policy(), 6, committed_actions=np.zeros((3, 4), np.float32))),
        "committed-nan": (1, fitting(committed_policy(), 6, committed_actions=actions * np.float32(np.nan))),
        "executed-actions": (0, fitting(plain, 6, executed_actions=actions, noise_seed=7, deadline=0.5)),
        "executed-infinite": (0, fitting(plain, 6, executed_actions=actions + np.float32(np.inf))),
        "late": (0, fitting(plain, BEGUN_AT)),
        "new-episode": (0, fitting(plain, 0, episode_id="f")),
        "long-id": (0, fitting(plain, 0, episode_id="\N{GRINNING FACE}" * 128)),
        "history": (0, fitting(plain, 6, history_only=True)),
        "far-step": (0, fitting(plain, 2**64 - 1, noise_seed=2**64 - 1)),
        "no-time": (0, fitting(plain, 6, deadline=float("nan"))),
        "told-nothing": (NEW_SESSION, fitting(plain, 0, instruction="")),
        "told-lines": (0, fitting(plain, 6, instruction="left\nright\x1b[2J\u202e")),
        "told-freely": (3, fitting(hearing_policy(), 6, instruction="please turn left now")),
        "told-far": (3, fitting(hearing_policy(), 6, instruction="slowly slowly\n")),
        "told-blank": (3, fitting(hearing_policy(), 6, instruction="  ")),
        "told-too-long": (3, fitting(hearing_policy(), 6, instruction="left " * 200)),
    }
    for name, form, code in (("jpeg", "JPEG", pb.IMAGE_FORMAT_JPEG), ("png", "PNG", pb.IMAGE_FORMAT_PNG)):
        observation = fitting(seeing_policy(), 6)
        del observation.tensors[EYE]
        observation.images[EYE].CopyFrom(pb.Image(format=code, data=encoded(form)))
        made[f"seeing-{name}"] = (2, observation)
    many = fitting(plain, 6)
    for i in range(40):
        many.tensors[f"{i}\n"].CopyFrom(pb.Tensor())
    made["many-keys"] = (0, many)
    requests = {name: (which, pb.StreamActionsRequest(observation=each)) for name, (which, each) in made.items()}
    requests["open"] = (0, pb.StreamActionsRequest(open=pb.OpenStream(policy="echo", robot_id="r")))
    return {
        name: bytes([which]) + each.SerializeToString(deterministic=True) for name, (which, each) in requests.items()
    }
