"""One robot's stream for asyncio: observations go out, action chunks come back."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from chunkcast.client.errors import ChunkcastError, ChunkTimeout, PolicyUnavailable
from chunkcast.client.wire import Answer, AnswerOrder, Sent, decode_answer, stream_end
from chunkcast.v1 import policy_pb2 as pb


class AsyncActionStream:
    """A stream to one policy; open it with ``AsyncPolicyClient.stream``.

    Two tasks write and read in the background, so that neither a send nor a receive waits for the network.

    Attributes:
        policy_version: the version that answered the opening.
        stream_id: the stream's name in the server's log.
    """

    policy_version = stream_id = ""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._order = AnswerOrder()
        self._requests: asyncio.Queue[pb.StreamActionsRequest] = asyncio.Queue()
        self._responses: asyncio.Queue[pb.StreamActionsResponse | ChunkcastError] = asyncio.Queue()
        self._closed_by: ChunkcastError | None = None
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    async def open(self, opening: pb.OpenStream, timeout: float) -> None:
        """Send the opening and wait until it is accepted.

        Raises:
            PolicyNotFound, PolicyUnavailable, PolicyOverloaded: it is not.
            ChunkTimeout: no answer within ``timeout`` seconds.
        """
        self._requests.put_nowait(pb.StreamActionsRequest(open=opening))
        try:
            opened = (await self._next(timeout)).opened
        except ChunkTimeout:
            self.close()
            raise ChunkTimeout("the stream was not opened in time") from None
        self.policy_version, self.stream_id = opened.policy_version, opened.stream_id

    def send(self, observation: pb.Observation) -> Sent:
        """Send an observation and return at once; ``receive`` gives the same token with its answer.

        Raises:
            PolicyUnavailable: the stream is over.
        """
        if self._closed_by is not None:
            raise self._closed_by
        token = self._order.sent(observation)
        self._requests.put_nowait(pb.StreamActionsRequest(observation=observation))
        return token

    async def receive(self, timeout: float | None = None) -> tuple[Sent, Answer]:
        """The next answer, to the oldest observation that has none yet.

        Args:
            timeout: seconds; 0 only looks whether there is one, ``None`` waits for ever.

        Raises:
            ChunkTimeout: there is none in time.
            PolicyUnavailable: the stream is over, or cannot be relied on.
        """
        response = await self._next(timeout)
        return self._order.answered(response), decode_answer(response)

    @property
    def over(self) -> bool:
        """Whether the stream has ended; open another."""
        return self._closed_by is not None or self._tasks[1].done()

    def close(self) -> None:
        """End the stream; harmless if it is over."""
        if self._closed_by is None:
            self._closed_by = PolicyUnavailable("the stream is closed")
            self._responses.put_nowait(self._closed_by)  # for who waits in receive
        for task in self._tasks:
            task.cancel()
        self._call.cancel()

    async def _next(self, timeout: float | None) -> pb.StreamActionsResponse:
        if self._closed_by is not None and self._responses.empty():
            raise self._closed_by
        try:
            if timeout is not None and timeout <= 0.0:
                response = self._responses.get_nowait()
            else:
                async with asyncio.timeout(timeout):
                    response = await self._responses.get()
        except (asyncio.QueueEmpty, TimeoutError):
            raise ChunkTimeout("no answer in time") from None
        if isinstance(response, ChunkcastError):
            self._closed_by = response
            raise response
        return response

    async def _write(self) -> None:
        while True:
            request = await self._requests.get()
            try:
                await self._call.write(request)
            except (grpc.RpcError, asyncio.InvalidStateError):
                return  # the reader says why the stream is over

    async def _read(self) -> None:
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                self._responses.put_nowait(response)
            ended = await self._ended()
        except grpc.RpcError as error:
            ended = stream_end(error, opened=bool(self.policy_version))
        self._responses.put_nowait(ended)

    async def _ended(self) -> ChunkcastError:
        """Why the server ended the stream."""
        code = await self._call.code()
        if code == grpc.StatusCode.OK:
            return PolicyUnavailable("the server ended the stream")
        trailers = await self._call.trailing_metadata() or grpc.aio.Metadata()
        error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, await self._call.details())
        return stream_end(error, opened=bool(self.policy_version))
