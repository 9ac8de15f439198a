"""The hostile client, as a process of its own: sends many messages of every kind and prints what it was told, as JSON.

``python -m benchmarks.hostile.attack ADDRESS COUNT TOKEN SEED``
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.hostile.kinds import Maker, bad_pictures
from chunkcast.client import Credentials
from chunkcast.client.aio.policy_client import open_aio_channel
from chunkcast.client.wire import RETRY_TRAILER
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc

STREAMS = 4
SERVICE = "/chunkcast.v1.PolicyService"
STATE_POLICY, SEEING_POLICY = "metaworld-six", "metaworld-six-rgb"
TIMEOUT = 30.0
OTHERS_SECONDS = 0.02
"""Longer than it is told: the other streams of this client wait too."""
RATE_FLAG = "--max-client-rate"
OWN_FAILURE = "Internal error from Core"
"""gRPC's asyncio client says so of a call that was refused before it had written all: the status is lost."""

SHARES = {"in a stream": 0.80, "random bytes": 0.05, "truncated": 0.04, "no opening": 0.03, "unary": 0.03}
"""Of the messages; the rest are calls that end one way each: unknown methods and policies, no token, abandoned."""

OVERSIZED, SILENT = 24, 24
"""Messages of 17 MiB, and connections that say half of what they should."""


class Attack:
    """Everything that is sent, and a table of what came back.

    Args:
        address: HOST:PORT.
        credentials: a token that the server knows.
        seed: of the messages' details.
    """

    def __init__(self, address: str, credentials: Credentials, seed: int) -> None:
        self._address, self._metadata, self._seed = address, credentials.metadata(), seed
        self._channel = open_aio_channel(address, credentials)
        self._stub: Any = pb_grpc.PolicyServiceStub(self._channel)
        self._random = np.random.default_rng(seed)
        self.told: Counter[tuple[str, str, bool]] = Counter()
        """By kind, by what the client was told, and whether that was right."""

    def _note(self, kind: str, told: str, *expected: str) -> None:
        self.told[kind, told, told in expected] += 1

    async def run(self, count: int) -> None:
        """All of it."""
        parts = {name: int(share * count) for name, share in SHARES.items()}
        ways: list[Coroutine[Any, Any, None]] = [
            self._stream(parts["in a stream"] // STREAMS, index) for index in range(STREAMS)
        ]
        ways += [
            self._repeat(parts["random bytes"], self._random_bytes),
            self._repeat(parts["truncated"], self._truncated),
            self._repeat(parts["no opening"], self._no_opening),
            self._repeat(parts["unary"], self._unary),
            self._repeat(count - sum(parts.values()), self._call),
            self._repeat(OVERSIZED, self._oversized),
            asyncio.to_thread(self._silent),
        ]
        await asyncio.gather(*ways)
        await self._channel.close()

    async def _repeat(self, count: int, send: Callable[[], Coroutine[Any, Any, None]]) -> None:
        for _ in range(count):
            await send()

    async def _stream(self, count: int, index: int) -> None:
        maker = Maker(self._seed + index)
        kinds = list(maker.kinds)
        pictures = bad_pictures(self._seed)
        call, seeing = await self._open(STATE_POLICY), await self._open(SEEING_POLICY)
        assert await self._answer(call, maker.good()) == "chunk"
        for number in range(count):
            if number % 16 == 0:
                kind = list(pictures)[number // 16 % len(pictures)]
                await self._picture(seeing, kind, pictures[kind], number)
                continue
            kind = kinds[number % len(kinds)]
            sent = maker.make(kind)
            self._note(kind, await self._answer(call, sent.observation), *sent.expected)
        for each in (call, seeing):
            await each.done_writing()
            assert await each.code() == grpc.StatusCode.OK

    async def _picture(self, call: Any, kind: str, data: bytes, step: int) -> None:
        observation = pb.Observation(episode_id="hostile", step=step, instruction="pick-place-v3")
        observation.tensors["observation.state"].CopyFrom(
            pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[4], data=bytes(16))
        )
        for key in SEEN:
            observation.images[key].CopyFrom(pb.Image(format=pb.IMAGE_FORMAT_JPEG, data=data))
        if kind == "a PNG bomb":
            for key in SEEN:
                observation.images[key].format = pb.IMAGE_FORMAT_PNG
        self._note(f"picture: {kind}", await self._answer(call, observation), "BAD_IMAGE", "WRONG_SHAPE")

    async def _open(self, policy: str) -> Any:
        """A stream, once the server has time for it."""
        while True:
            call = self._stub.StreamActions(metadata=self._metadata)
            with suppress(grpc.RpcError):  # refused: it may ask again
                await call.write(pb.StreamActionsRequest(open=pb.OpenStream(policy=policy, robot_id="hostile")))
                if await call.read() is not grpc.aio.EOF:
                    return call
            await asyncio.sleep(0.05)

    async def _answer(self, call: Any, observation: pb.Observation) -> str:
        """What is told of an observation, once the server has time for it."""
        while True:
            await call.write(pb.StreamActionsRequest(observation=observation))
            response = await asyncio.wait_for(call.read(), TIMEOUT)
            told = _told(response)
            if told != "RATE_LIMITED":
                return told
            self.told["beyond its rate", told, True] += 1
            await asyncio.sleep(response.error.retry_after + OTHERS_SECONDS)

    async def _raw(self, kind: str, data: bytes, *expected: str, opened: bool = False) -> None:
        """Bytes as a stream's message."""

        async def messages() -> AsyncIterator[bytes]:
            if opened:
                yield pb.StreamActionsRequest(open=pb.OpenStream(policy=STATE_POLICY)).SerializeToString()
            yield data

        method: Any = self._channel.stream_stream(
            f"{SERVICE}/StreamActions",
            request_serializer=bytes,
            response_deserializer=pb.StreamActionsResponse.FromString,
        )
        while True:
            call = method(messages(), metadata=self._metadata, timeout=TIMEOUT)
            with suppress(grpc.RpcError):  # its status is told below
                async for response in call:
                    if response.WhichOneof("response") == "chunk":
                        self._note(kind, "a chunk")
            details = await call.details() or ""
            if details != OWN_FAILURE and RATE_FLAG not in details:
                break
            self._note("beyond its rate", "told so", "told so")
            await asyncio.sleep(OTHERS_SECONDS)
        await self._ended(kind, call, *expected)

    async def _ended(self, kind: str, call: Any, *expected: str) -> None:
        code, details = await call.code(), await call.details() or ""
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED and RATE_FLAG in details:
            trailers = dict(await call.trailing_metadata() or ())
            self.told["beyond its rate", code.name, RETRY_TRAILER in trailers] += 1
            await asyncio.sleep(int(str(trailers.get(RETRY_TRAILER, 1))) / 1e3)
            return
        clean = "Traceback" not in details and ".py" not in details and "\n" not in details
        self._note(kind, code.name if clean else f"{code.name} with a traceback", *expected)

    async def _random_bytes(self) -> None:
        # What these bytes happen to mean is nothing, or a message of unknown fields, which is refused in the stream.
        data = self._random.bytes(int(self._random.integers(1, 2000)))
        opened = bool(self._random.integers(2))
        await self._raw("random bytes", data, "INVALID_ARGUMENT", "OK", opened=opened)

    async def _truncated(self) -> None:
        message = pb.StreamActionsRequest(observation=Maker(0).good()).SerializeToString()
        cut = message[: int(self._random.integers(1, len(message) - 1))]
        # A cut between two fields leaves a message, which is refused in the stream.
        await self._raw("truncated message", cut, "INVALID_ARGUMENT", "OK", opened=True)

    async def _no_opening(self) -> None:
        message = pb.StreamActionsRequest(observation=Maker(0).good()).SerializeToString()
        await self._raw("no opening", message, "INVALID_ARGUMENT")

    async def _unary(self) -> None:
        maker = Maker(int(self._random.integers(2**31)))
        kind = list(maker.kinds)[int(self._random.integers(len(maker.kinds)))]
        sent = maker.make(kind)
        if kind == "old step":  # there is no episode that it could be older than
            return
        request = pb.PredictChunkRequest(policy=STATE_POLICY, observations=[sent.observation])
        while True:
            call = self._stub.PredictChunk(request, metadata=self._metadata, timeout=TIMEOUT)
            if RATE_FLAG not in (await call.details() or ""):
                break
            self._note("beyond its rate", "told so", "told so")
            await asyncio.sleep(OTHERS_SECONDS)
        await self._ended(f"unary: {kind}", call, "INVALID_ARGUMENT")

    async def _call(self) -> None:
        which = int(self._random.integers(5))
        call: Any
        if which == 0:
            shutdown: Any = self._channel.unary_unary(f"{SERVICE}/Shutdown")
            call = shutdown(b"", metadata=self._metadata)
            await self._ended("unknown method", call, "UNIMPLEMENTED")
        elif which == 1:
            call = self._stub.GetPolicy(pb.GetPolicyRequest(policy="../" * 1000), metadata=self._metadata)
            await self._ended("unknown policy", call, "NOT_FOUND")
        elif which == 2:
            call = self._stub.ListPolicies(pb.ListPoliciesRequest())
            await self._ended("no token", call, "UNAUTHENTICATED")
        elif which == 3:
            request = pb.ReportEpisodeRequest(policy=STATE_POLICY, outcome=99, robot_id="x")  # type: ignore[arg-type]
            call = self._stub.ReportEpisode(request, metadata=self._metadata)
            await self._ended("unknown outcome", call, "INVALID_ARGUMENT")
        else:
            call = self._stub.StreamActions(metadata=self._metadata)
            with suppress(grpc.RpcError):  # beyond its rate
                await call.write(pb.StreamActionsRequest(open=pb.OpenStream(policy=STATE_POLICY, robot_id="gone")))
            call.cancel()
            self._note("opened and abandoned", "cancelled", "cancelled")

    async def _oversized(self) -> None:
        await self._raw("oversized message", bytes(17 * 2**20), "RESOURCE_EXHAUSTED", opened=True)

    def _silent(self) -> None:
        """Connections that say nothing, rubbish, or half a greeting: each is closed, sooner or later."""
        host, port = self._address.rsplit(":", 1)
        greetings = (b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n", os.urandom(1000))
        sockets = []
        for index in range(SILENT):
            each = socket.create_connection((host, int(port)), timeout=TIMEOUT)
            each.sendall(greetings[index % len(greetings)])
            sockets.append(each)
        for each in sockets:
            with each:
                try:
                    while each.recv(4096):
                        pass
                    told = "closed"
                except ConnectionError:
                    told = "closed"
                except TimeoutError:
                    told = "left open"
            self._note("slow or silent connection", told, "closed")


SEEN = ("observation.images.corner2-close", "observation.images.gripper", "observation.images.topview")


def _told(response: pb.StreamActionsResponse | Any) -> str:
    if response is grpc.aio.EOF:
        return "the stream's end"
    kind = response.WhichOneof("response")
    return pb.ErrorCode.Name(response.error.code).removeprefix("ERROR_CODE_") if kind == "error" else str(kind)


async def main(address: str, count: int, token: Path, seed: int) -> None:
    """Attack, and print the table."""
    attack = Attack(address, Credentials(token_file=token), seed)
    await attack.run(count)
    rows = [
        {"kind": kind, "told": told, "right": right, "count": number}
        for (kind, told, right), number in sorted(attack.told.items())
    ]
    print(json.dumps(rows))


if __name__ == "__main__":
    os.nice(19)  # it would be on another machine
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
