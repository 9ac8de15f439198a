"""Robots with chunkcast's asyncio client: a task, a connection and a stream each, in one process.

``python -m benchmarks.peers.chunkcast_robots`` reads what to do as JSON from standard input and writes what was
measured to standard output, like openpi_robots.py. Each observation is encoded and each chunk decoded anew, as the
peers' clients do.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.client.aio import AsyncPolicyClient
from chunkcast.client.wire import ActionChunk, encode_observation
from chunkcast.v1 import policy_pb2 as pb


def typical_observation(spec: pb.PolicySpec) -> tuple[dict[str, npt.NDArray[np.float32]], str]:
    """The middle of each element's training range, and the policy's first instruction."""
    observation = {
        entry.key: np.array([(e.training_min + e.training_max) / 2 for e in entry.elements], np.float32)
        for entry in spec.observations
    }
    return observation, spec.instructions[0].text


async def robot(
    client: AsyncPolicyClient, request: dict[str, Any], name: str, counted_from: float, until: float
) -> list[tuple[float, float, int]]:
    """Ask, wait for the answer, ask again: milliseconds of each chunk and of the inference in it, and its batch size.

    Raises:
        ChunkcastError: an observation got no chunk.
    """
    observation = {key: np.array(value, np.float32) for key, value in request["observation"].items()}
    instruction, step = request["instruction"], 0
    stream = await client.stream(robot_id=name)
    measured = []
    while (asked := time.perf_counter()) < until:
        stream.send(encode_observation(observation, episode_id=name, step=step, instruction=instruction))
        _, answer = await stream.receive()
        answered = time.perf_counter()
        if not isinstance(answer, ActionChunk):
            raise answer if isinstance(answer, Exception) else TypeError(f"got {answer}, expected a chunk")
        if counted_from <= answered < until:
            measured.append(((answered - asked) * 1e3, answer.inference_seconds * 1e3, answer.batch_size))
        step += 1
    stream.close()
    return measured


async def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Measure one block."""
    async with AsyncExitStack() as connections:
        clients = [
            await connections.enter_async_context(AsyncPolicyClient(request["address"]))
            for _ in range(request["robots"])
        ]
        for client in clients:
            await client.wait_until_ready(10.0)
        counted_from = time.perf_counter() + request["warm_up"]
        until = counted_from + request["seconds"]
        robots = (robot(client, request, f"robot-{i}", counted_from, until) for i, client in enumerate(clients))
        chunks = [chunk for measured in await asyncio.gather(*robots) for chunk in measured]
    return {
        "latency_ms": [latency for latency, _, _ in chunks],
        "inference_ms": [inference for _, inference, _ in chunks],
        "batch_size": [size for _, _, size in chunks],
    }


if __name__ == "__main__":
    json.dump(asyncio.run(measure(json.load(sys.stdin))), sys.stdout)
