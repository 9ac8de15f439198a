"""A call as the servicer knows it, on a replica that Ray's proxy has handed it to.

The servicer reads and writes through gRPC's context. On a replica, requests come as an iterator, answers are what a
generator yields, and how the call ends is set on Ray's own context: this puts them together again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import grpc

UNTAKEN = 1
"""Answers that the generator has not taken; the servicer waits before it makes another. What Ray has taken and the
robot has not, nobody bounds."""


_numbers = itertools.count()


class CallEnded(Exception):
    """The servicer ended the call; its code and message are on Ray's context."""


class CallContext:
    """What the servicer uses of ``grpc.aio.ServicerContext``.

    Args:
        call: Ray's context of the call.
        requests: what the client sends; none where the call has a single request.
    """

    def __init__(self, call: Any, requests: AsyncIterator[Any] | None = None) -> None:
        self._call, self._requests = call, requests
        self._answers: asyncio.Queue[Any] = asyncio.Queue(UNTAKEN)
        self._number = next(_numbers)

    async def read(self) -> Any:
        """The next request, or ``grpc.aio.EOF``."""
        assert self._requests is not None
        try:
            return await anext(self._requests)
        except StopAsyncIteration:
            return grpc.aio.EOF

    async def write(self, response: Any) -> None:
        """Hand an answer over, once the one before is taken."""
        await self._answers.put(response)

    async def next_answer(self) -> Any:
        """What ``write`` was given, in order."""
        return await self._answers.get()

    def answers_left(self) -> list[Any]:
        """What was written and not taken."""
        left = []
        while not self._answers.empty():
            left.append(self._answers.get_nowait())
        return left

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, str]] = ()
    ) -> NoReturn:
        """End the call with a status.

        Raises:
            CallEnded: always.
        """
        self._call.set_code(code)
        self._call.set_details(details)
        if trailing_metadata:
            self.set_trailing_metadata(trailing_metadata)
        raise CallEnded(details)

    def set_trailing_metadata(self, metadata: Sequence[tuple[str, str]]) -> None:
        """To be sent with the status."""
        self._call.set_trailing_metadata(list(metadata))

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """What the client sent along."""
        metadata: Sequence[tuple[str, str]] = self._call.invocation_metadata()
        return metadata

    def peer(self) -> str:
        """The client's address, as the proxy saw it. Each call has its own, as if it were a connection: the proxy keeps
        those, and a stream's age is what may lead it to another replica.
        """
        return f"{self._call.peer()}-{self._number}"

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Of the proxy's connection; empty without TLS."""
        facts: Mapping[str, Iterable[bytes]] = self._call.auth_context() or {}
        return facts
