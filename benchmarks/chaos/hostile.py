"""A hostile client, as a process of its own.

``python -m benchmarks.chaos.hostile ADDRESS floods|stops-reading TOKEN``
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np

from chunkcast.client import Credentials
from chunkcast.client.aio.policy_client import open_aio_channel
from chunkcast.client.wire import encode_observation
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc

STREAMS = 8
BEFORE_SAYING_SO = 500
"""Observations that were sent."""


async def main(address: str, what: str, token: Path) -> None:
    """Until it is killed."""
    credentials = Credentials(token_file=token)
    sent = itertools.count()
    state = np.zeros(39, np.float32)

    async def requests() -> AsyncIterator[pb.StreamActionsRequest]:
        yield pb.StreamActionsRequest(open=pb.OpenStream(robot_id="hostile"))
        for step in itertools.count():
            if next(sent) == BEFORE_SAYING_SO:
                print("at it", flush=True)
            message = encode_observation(
                {"observation.state": state}, episode_id="hostile", step=step, instruction="drawer-open-v3"
            )
            yield pb.StreamActionsRequest(observation=message)
            await asyncio.sleep(0)

    async with open_aio_channel(address, credentials) as channel:
        stub: Any = pb_grpc.PolicyServiceStub(channel)
        calls = [stub.StreamActions(requests(), metadata=credentials.metadata()) for _ in range(STREAMS)]

        async def read(call: Any) -> None:
            async for _ in call:
                pass

        if what == "floods":
            await asyncio.gather(*(read(call) for call in calls))
        await asyncio.Event().wait()


if __name__ == "__main__":
    os.nice(19)  # it would be on another machine
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
