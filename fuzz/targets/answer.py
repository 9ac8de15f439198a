"""What a hostile or broken server sends to a robot.

Input: a byte that says what (modulo 3): a ``StreamActionsResponse`` to a robot that waits for a chunk; how a call ends
(a byte for the status, the trailer's value, a zero byte, the details); or a ``PolicySpec``.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from chunkcast.client.errors import ChunkcastError, ObservationError, PolicyOverloaded, RobotMismatch
from chunkcast.client.playback import Playback
from chunkcast.client.playback_config import PlaybackConfig
from chunkcast.client.reconnect import require_same_contract
from chunkcast.client.robot import check_observation
from chunkcast.client.wire import (
    RETRY_TRAILER,
    ActionChunk,
    AnswerOrder,
    Dropped,
    decode_answer,
    error_of,
)
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.tensors import encode_tensor
from fuzz.checks import require, require_array, require_clear
from fuzz.mutators import as_protobuf, prefixed
from fuzz.policies import EPISODE, plain_policy, seeing_policy
from fuzz.registry import Mutate
from tests.handmade_bundle import STATE_KEY, STATE_SIZE

ANSWER, END, POLICY = range(3)
NOW = 1000.0
STATUS = tuple(grpc.StatusCode)
LONGEST_WAIT = threading.TIMEOUT_MAX
"""Seconds that a thread can wait; it fails with more."""

OBSERVED = {STATE_KEY: np.zeros(STATE_SIZE, np.float32)}


def run(data: bytes) -> None:
    """What a robot's program makes of it is an answer or one of the package's errors."""
    what, content = (data[0] % 3, data[1:]) if data else (ANSWER, b"")
    try:
        if what == ANSWER:
            _answer(pb.StreamActionsResponse.FromString(content))
        elif what == POLICY:
            _policy(pb.PolicySpec.FromString(content))
        else:
            _end(content)
    except DecodeError:
        return


def mutate(data: bytes, most: int, seed: int, plain: Mutate) -> bytes:
    """Messages within their format, ends of calls as bytes."""
    if data and data[0] % 3 == END:
        return data[:1] + plain(data[1:] or b"\0", most - 1)
    return prefixed(as_protobuf)(data, most, seed, plain)


def _answer(response: pb.StreamActionsResponse) -> None:
    """As a robot in its first tick takes it."""
    playback, order = Playback(plain_policy(), PlaybackConfig(), 0.5), AnswerOrder()
    playback.begin_episode("left", episode_id=EPISODE)
    for message in playback.begin_tick(OBSERVED, NOW):
        order.sent(message)
    answer = decode_answer(response)
    _check_answer(answer)
    try:
        token = order.answered(response)
        playback.take(token, answer, NOW + 0.1)
    except ChunkcastError as error:
        _check_message(error)
    again = playback.retry_at()
    require(again is None or again <= NOW + 0.1 + LONGEST_WAIT, f"the robot is to ask again at {again}")
    require(0.0 <= playback.seconds_to_wait(NOW + 0.2) <= 1.0, "the robot waits for another time than it was told")
    playback.begin_tick(OBSERVED, NOW + 0.2)
    try:
        action = playback.action()
    except ChunkcastError as error:
        _check_message(error)
        return
    require_array("an action", action, (STATE_SIZE,), np.float32)
    require(bool((np.abs(action) <= 101.0).all()), "an action is beyond its bounds")


def _check_answer(answer: Any) -> None:
    require(isinstance(answer, ActionChunk | Dropped | ObservationError | PolicyOverloaded), f"answer {type(answer)}")
    if isinstance(answer, ActionChunk):
        require(answer.actions.ndim == 2 and answer.actions.dtype == np.float32, "actions are no float32 [H, A]")
        require(bool(np.isfinite(answer.actions).all()), "actions are not finite")
        require(not answer.actions.flags.writeable, "actions can be written to")
        health = answer.health
        require(health is None or isinstance(health.unhealthy, bool), "a judgement says neither yes nor no")
    elif isinstance(answer, PolicyOverloaded):
        _check_wait(answer)
        _check_message(answer)
    elif isinstance(answer, ObservationError):
        _check_message(answer)


def _check_message(error: ChunkcastError) -> None:
    if str(error):  # a server may say nothing
        require_clear(error)


def _check_wait(error: ChunkcastError) -> None:
    if isinstance(error, PolicyOverloaded):
        require(0.0 <= error.retry_after <= LONGEST_WAIT, f"a robot is to wait {error.retry_after} s")


def _end(content: bytes) -> None:
    """A call's end as this package's error."""
    head, _, details = content[1:].partition(b"\0")
    # What HTTP/2 carries in a header's value.
    value = "".join(chr(byte) for byte in head if 32 <= byte < 127)
    code, said = STATUS[content[0] % len(STATUS)] if content else STATUS[0], details.decode(errors="replace")
    end = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata((RETRY_TRAILER, value)), said)
    error = error_of(end)
    require(isinstance(error, ChunkcastError), f"a call's end is a {type(error).__name__}")
    require_clear(error)
    _check_wait(error)


def _policy(spec: pb.PolicySpec) -> None:
    """A robot is compared with it, and a player made, or not."""
    try:
        require_same_contract(plain_policy(), spec)
    except RobotMismatch as error:
        require_clear(error)
    try:
        check_observation(spec, OBSERVED)
    except RobotMismatch as error:
        require_clear(error)
        return
    try:
        playback = Playback(spec, PlaybackConfig(), 0.5)
        playback.begin_episode("left", episode_id=EPISODE)
        messages = playback.begin_tick(OBSERVED, NOW)
    except (ValueError, ChunkcastError) as error:
        require_clear(error)
        return
    require(len(messages) == 1 and 0.0 < messages[0].deadline < math.inf, "a robot asks for nothing, or for ever")


def seeds() -> dict[str, bytes]:
    """Every kind of answer, whole and with one fault; ends of calls; policies."""
    good = np.zeros((3, STATE_SIZE), np.float32)

    def chunk(actions: pb.Tensor, **more: Any) -> pb.StreamActionsResponse:
        return pb.StreamActionsResponse(
            chunk=pb.ActionChunk(episode_id=EPISODE, step=0, actions=actions, policy_version="1", **more)
        )

    def error(code: Any, message: str = "why", retry_after: float = 0.0) -> pb.StreamActionsResponse:
        return pb.StreamActionsResponse(
            error=pb.ObservationError(episode_id=EPISODE, code=code, message=message, retry_after=retry_after)
        )

    health = pb.ChunkHealth(
        step=0,
        signal=pb.HEALTH_SIGNAL_NOVELTY,
        score=2.0,
        threshold=1.0,
        scores=[pb.SignalScore(signal=77, score=float("nan"))],  # type: ignore[arg-type]
    )
    float32 = pb.DATA_TYPE_FLOAT32
    answers = {
        "chunk": chunk(encode_tensor(good)),
        "chunk-judged": chunk(encode_tensor(good), health=health, batch_size=2),
        "chunk-nan": chunk(encode_tensor(good * np.float32(np.nan))),
        "chunk-beyond": chunk(encode_tensor(good + np.float32(1000.0))),
        "chunk-beyond-of-lines": chunk(encode_tensor(good + np.float32(1000.0))),
        "chunk-other-shape": chunk(encode_tensor(good[:2])),
        "chunk-other-dtype": chunk(encode_tensor(good.astype(np.float64))),
        "chunk-many-axes": chunk(pb.Tensor(dtype=float32, shape=[1] * 65, data=bytes(4))),
        "chunk-endless-product": chunk(pb.Tensor(dtype=float32, shape=[2**62] * 300)),
        "chunk-long-shape": chunk(pb.Tensor(dtype=float32, shape=[1] * 3000)),
        "chunk-of-nothing": chunk(pb.Tensor(dtype=float32, shape=[0, 2**62, 2**62])),
        "chunk-not-asked-for": pb.StreamActionsResponse(chunk=pb.ActionChunk(episode_id="f", step=9)),
        "dropped": pb.StreamActionsResponse(dropped=pb.ObservationDropped(episode_id=EPISODE, reason=1)),  # type: ignore[arg-type]
        "dropped-unknown": pb.StreamActionsResponse(dropped=pb.ObservationDropped(episode_id=EPISODE, reason=77)),  # type: ignore[arg-type]
        "opened": pb.StreamActionsResponse(opened=pb.StreamOpened(policy="echo", policy_version="1")),
        "nothing": pb.StreamActionsResponse(),
        "error": error(pb.ERROR_CODE_WRONG_KEY),
        "error-unknown": error(77),
        "error-of-lines": error(pb.ERROR_CODE_INTERNAL, "a\nb\x1b[2J"),
        "error-long": error(pb.ERROR_CODE_INTERNAL, "x" * 3000),
        "unsafe-of-lines": error(pb.ERROR_CODE_UNSAFE_ACTION, "a\nb"),
        "overloaded": error(pb.ERROR_CODE_OVERLOADED, retry_after=0.25),
    }
    for name, seconds in (("nan", math.nan), ("infinity", math.inf), ("negative", -1.0), ("ages", 1e300)):
        answers[f"overloaded-{name}"] = error(pb.ERROR_CODE_OVERLOADED, retry_after=seconds)
    answers["chunk-beyond-of-lines"].chunk.policy_version = "a\nb" * 1000
    made = {name: bytes([ANSWER]) + each.SerializeToString(deterministic=True) for name, each in answers.items()}
    exhausted = STATUS.index(grpc.StatusCode.RESOURCE_EXHAUSTED)
    ends = {
        "unavailable": (STATUS.index(grpc.StatusCode.UNAVAILABLE), "", "gone"),
        "of-lines": (STATUS.index(grpc.StatusCode.NOT_FOUND), "", "a\nb" * 900),
        "exhausted": (exhausted, "250", "full"),
        "exhausted-no-number": (exhausted, "soon", ""),
        "exhausted-negative": (exhausted, "-1", ""),
        "exhausted-for-ages": (exhausted, "9" * 20, ""),
        "exhausted-beyond-floats": (exhausted, "9" * 400, ""),
        "exhausted-beyond-integers": (exhausted, "9" * 4000 + "9" * 500, ""),
    }
    made |= {
        f"end-{name}": bytes([END, code]) + trailer.encode() + b"\0" + details.encode()
        for name, (code, trailer, details) in ends.items()
    }
    policies = {
        name: plain_policy()
        for name in ("plain", "no-rate", "rate-tiny", "no-actions", "no-dtype", "bounds-nan", "bounds-large", "lines")
    }
    policies["no-rate"].action.control_rate_hz = 0.0
    policies["rate-tiny"].action.control_rate_hz = 1e-311
    del policies["no-actions"].action.elements[:]
    policies["no-dtype"].observations[0].dtype = 77  # type: ignore[assignment]
    policies["bounds-nan"].action.elements[0].low = math.nan
    policies["bounds-large"].action.elements[0].high = 1e300
    policies["lines"].version = policies["lines"].action.elements[0].name = "a\nb" * 900
    policies["seeing"] = seeing_policy()
    policies["empty"] = pb.PolicySpec()
    return made | {
        f"policy-{name}": bytes([POLICY]) + spec.SerializeToString(deterministic=True)
        for name, spec in policies.items()
    }
