"""Robots that only ask: closed loop (ask, wait, ask) or open loop (ask at a rate, whatever comes back).

In an open loop a chunk's time counts from when its observation was due, not from when it could be sent: a generator
that falls behind must not hide a server that does.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from chunkcast.client.aio.policy_client import open_aio_channel
from chunkcast.client.credentials import Credentials
from chunkcast.client.errors import ChunkTimeout, PolicyUnavailable
from chunkcast.client.wire import encode_observation, error_of
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc
from chunkcast.v1.tensors import DTYPES

STREAMS_PER_CONNECTION = 16
"""One connection's messages share one flow of control; real robots have one each."""

ANSWER_SECONDS = 30.0
"""A chunk that takes longer will not come."""


STAGES = ("queue", "preprocess", "decode", "inference", "postprocess", "total")
"""Of a chunk, as the server times them; decode is a part of preprocess."""

COARSE = 8
"""Cells to a side of a made-up picture: it compresses as a scene does, where noise would not."""


@dataclass
class Measured:
    """What the robots saw.

    Attributes:
        latency: seconds of each chunk.
        batch_sizes: observations computed together, of each chunk.
        outcomes: answers by kind: ``chunk``, ``dropped``, or the error code in lower case.
        stages: seconds that the server spent on each chunk, by stage.
        sent: observations.
        seconds: how long was measured.
    """

    latency: list[float] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    seconds: float = 0.0
    stages: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})

    def count(self, response: pb.StreamActionsResponse, seconds: float) -> None:
        """Count one answer."""
        kind: str | None = response.WhichOneof("response")
        if kind == "chunk":
            self.latency.append(seconds)
            self.batch_sizes.append(response.chunk.batch_size)
            for stage, values in self.stages.items():
                values.append(getattr(response.chunk.timings, stage))
        elif kind == "error":
            kind = pb.ErrorCode.Name(response.error.code).removeprefix("ERROR_CODE_").lower()
        self.outcomes[str(kind)] += 1


async def drive(
    target: str,
    spec: pb.PolicySpec,
    *,
    streams: int,
    warm_up: float,
    seconds: float,
    rate_hz: float | None,
    image_quality: int | None = None,
    credentials: Credentials | None = None,
) -> Measured:
    """Let ``streams`` robots ask for ``warm_up`` seconds, which are not counted, and then for ``seconds``.

    Args:
        target: HOST:PORT of the server.
        spec: of the policy that they play.
        rate_hz: observations per second and robot; ``None`` for a closed loop.
        credentials: for the server.
        image_quality: of the JPEGs that pictures are sent as; ``None`` sends them as they are.

    Raises:
        ChunkcastError: a stream could not be opened, or broke.
    """
    credentials = credentials or Credentials()
    channels = [open_aio_channel(target, credentials) for _ in range(0, streams, STREAMS_PER_CONNECTION)]
    measured = Measured()
    started = time.perf_counter()
    phases = _Phases(started + warm_up, started + warm_up + seconds)
    try:
        robots = [
            _Robot(
                channels[index % len(channels)],
                pb.OpenStream(policy=spec.name, robot_id=f"load-{index}"),
                pb.StreamActionsRequest(observation=made_observation(spec, index, image_quality)),
                index,
                phases,
                measured,
                credentials.metadata(),
            )
            for index in range(streams)
        ]
        loops = (robot.closed_loop() if rate_hz is None else robot.open_loop(rate_hz, streams) for robot in robots)
        async with asyncio.timeout(warm_up + seconds + ANSWER_SECONDS):
            await asyncio.gather(*loops)
    except grpc.RpcError as error:
        raise error_of(error) from None
    except asyncio.InvalidStateError:
        raise PolicyUnavailable("the server ended a stream") from None
    except TimeoutError:
        raise ChunkTimeout(f"the server left a robot without an answer for {ANSWER_SECONDS:g} s") from None
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))
    measured.seconds = seconds
    return measured


@dataclass(frozen=True)
class _Phases:
    counted_from: float
    until: float

    def counts(self, moment: float) -> bool:
        return self.counted_from <= moment < self.until


class _Robot:
    def __init__(
        self,
        channel: grpc.aio.Channel,
        opening: pb.OpenStream,
        message: pb.StreamActionsRequest,
        index: int,
        phases: _Phases,
        measured: Measured,
        metadata: tuple[tuple[str, str], ...],
    ) -> None:
        stub: Any = pb_grpc.PolicyServiceStub(channel)
        self._call = stub.StreamActions(metadata=metadata)
        self._opening, self._message = opening, message
        self._index, self._phases, self._measured = index, phases, measured

    async def closed_loop(self) -> None:
        """Ask, wait for the answer, ask again."""
        await self._open()
        while (asked := time.perf_counter()) < self._phases.until:
            await self._send()
            response = await self._receive()
            if self._phases.counts(asked):
                self._measured.sent += 1
                self._measured.count(response, time.perf_counter() - asked)
        await self._call.done_writing()

    async def open_loop(self, rate_hz: float, robots: int) -> None:
        """Ask at a rate, the robots spread over its period."""
        await self._open()
        due_times: deque[float] = deque()
        receiver = asyncio.create_task(self._receive_all(due_times))
        due = time.perf_counter() + self._index / (robots * rate_hz)
        try:
            while due < self._phases.until:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                due_times.append(due)
                self._measured.sent += self._phases.counts(due)
                await self._send()
                due += 1.0 / rate_hz
            await self._call.done_writing()
            await receiver
        finally:
            receiver.cancel()

    async def _receive_all(self, due_times: deque[float]) -> None:
        # Answers come one to each observation, in order.
        while (response := await self._call.read()) is not grpc.aio.EOF:
            due = due_times.popleft()
            if self._phases.counts(due):
                self._measured.count(response, time.perf_counter() - due)

    async def _open(self) -> None:
        await self._call.write(pb.StreamActionsRequest(open=self._opening))
        await self._receive()

    async def _send(self) -> None:
        self._message.observation.step += 1
        await self._call.write(self._message)

    async def _receive(self) -> pb.StreamActionsResponse:
        response = await self._call.read()
        if response is grpc.aio.EOF:
            raise grpc.aio.AioRpcError(
                await self._call.code(),
                grpc.aio.Metadata(),
                grpc.aio.Metadata(),
                await self._call.details() or "the server ended the stream",
            )
        answer: pb.StreamActionsResponse = response
        return answer


def made_observation(spec: pb.PolicySpec, seed: int, image_quality: int | None) -> pb.Observation:
    """Something between the least and the greatest that was seen in training, another for each robot."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for entry in spec.observations:
        unit = generator.random(tuple(entry.shape))
        if entry.HasField("camera"):
            cells = [np.arange(size) * COARSE // size for size in entry.shape[:2]]
            unit = generator.random((COARSE, COARSE, 3))[np.ix_(*cells)]
        if entry.elements and len(entry.elements) == unit.size:
            low = np.array([element.training_min for element in entry.elements]).reshape(unit.shape)
            high = np.array([element.training_max for element in entry.elements]).reshape(unit.shape)
            unit = low + unit * (high - low)
        elif DTYPES[entry.dtype].kind in "iu":
            unit = unit * 255
        arrays[entry.key] = unit.astype(DTYPES[entry.dtype])
    instruction = spec.instructions[seed % len(spec.instructions)].text if spec.instructions else ""
    return encode_observation(arrays, episode_id=f"load-{seed}", instruction=instruction, image_quality=image_quality)
