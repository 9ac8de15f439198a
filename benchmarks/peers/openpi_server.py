"""Eager torch behind the protocol of openpi's client, one request at a time.

``python -m benchmarks.peers.openpi_server --bundle DIR`` prints ``ready PORT`` and serves until standard input ends or
SIGTERM. It behaves as openpi's server does: the metadata on connecting, then for each message the policy's answer
computed on the event loop, so that one robot's inference holds up all others, with ``server_timing`` in the reply; no
compression, no limit on a message. Other than openpi's it is warm before it listens, in its favour. Messages are
msgpack, an array a map with the four keys of ``_pack_array``.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np
import tyro
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from benchmarks.peers.chunkcast_robots import typical_observation
from benchmarks.peers.eager_torch import PROMPT_KEY, EagerPolicy, NetworkConfig

HOST = "127.0.0.1"


def _pack_array(value: Any) -> Any:
    """An array as openpi's client reads and writes it."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"cannot send {type(value).__name__}, expected an array or what msgpack knows")
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": list(value.shape)}


def _unpack_array(mapping: Mapping[Any, Any]) -> Any:
    if b"__ndarray__" not in mapping:
        return mapping
    return np.frombuffer(mapping[b"data"], mapping[b"dtype"]).reshape(mapping[b"shape"])


async def serve_policy(policy: EagerPolicy) -> None:
    """Serve until standard input ends or SIGTERM."""
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    loop.add_reader(sys.stdin.fileno(), stopped.set)  # nothing is ever written to it: readable means ended

    async def handle(connection: ServerConnection) -> None:
        packer = msgpack.Packer(default=_pack_array)
        await connection.send(packer.pack({"policy": policy.spec.name, "version": policy.spec.version}))
        with suppress(ConnectionClosed):  # openpi's client leaves without a goodbye
            while True:
                observation = msgpack.unpackb(await connection.recv(), object_hook=_unpack_array)
                started = time.monotonic()
                reply = policy.infer(observation)
                reply["server_timing"] = {"infer_ms": (time.monotonic() - started) * 1e3}
                await connection.send(packer.pack(reply))

    async with serve(handle, HOST, 0, compression=None, max_size=None) as server:
        print("ready", next(iter(server.sockets)).getsockname()[1], flush=True)
        await stopped.wait()


def main() -> None:
    """Serve."""
    policy = EagerPolicy(tyro.cli(NetworkConfig))
    observation, prompt = typical_observation(policy.spec)
    policy.warm_up({**observation, PROMPT_KEY: prompt})
    asyncio.run(serve_policy(policy))


if __name__ == "__main__":
    main()
