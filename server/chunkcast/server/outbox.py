"""Answers on their way to a robot: each observation's exactly once, in the observations' order."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

import grpc

from chunkcast.server.tracing import StreamTrace
from chunkcast.v1 import policy_pb2 as pb

MAX_UNSENT = 64
"""Answers that a robot has not taken yet; beyond these its observations are left in the network until it does."""

TAKE_SECONDS = 30.0
"""A robot that takes no answer for so long, though its connection lives, is not reading; its place may be needed."""

Context = grpc.aio.ServicerContext[Any, pb.StreamActionsResponse]


class StreamEnded(Exception):
    """The server ends this stream; the message is for the robot.

    Attributes:
        status: of the call.
    """

    def __init__(self, message: str, status: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        super().__init__(message)
        self.status = status


@dataclass(eq=False, slots=True)
class Place:
    """An answer's place in the order.

    Attributes:
        response: the answer, once it is known.
    """

    response: pb.StreamActionsResponse | None = None


class Outbox:
    """Sends a stream's answers.

    Args:
        context: of the call.
        trace: the stream's spans.

    Attributes:
        last_words: why the stream ends after the next answer, if it does.
    """

    def __init__(self, context: Context, trace: StreamTrace) -> None:
        self._context, self._trace = context, trace
        self._places: deque[Place] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._writing = self._complete = False
        self.last_words = ""

    def reserve(self, place: Place) -> None:
        """The next answer in the order stands in ``place``."""
        self._places.append(place)

    def answer(self, place: Place, response: pb.StreamActionsResponse) -> None:
        """The answer in ``place`` is known; one that has no place yet takes the next."""
        place.response = response
        if place not in self._places:
            self._places.append(place)
        self._changed.set()

    def complete(self) -> None:
        """No further answer will have a place."""
        self._complete = True
        self._changed.set()

    async def wait_for_room(self) -> None:
        """Until the robot has taken answers enough to be read on."""
        while len(self._places) >= MAX_UNSENT:
            self._room.clear()
            await self._room.wait()

    async def run(self) -> None:
        """Send what becomes known, until all is complete and sent.

        Raises:
            StreamEnded: as ``flush``.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self.flush()
            if self._complete and not self._places:
                return

    async def flush(self) -> None:
        """Send what can be sent: the answers up to the first that is still being computed.

        Raises:
            StreamEnded: there were last words, or the robot takes no answer.
        """
        if self._writing:
            return
        self._writing = True
        try:
            while self._places and (response := self._places[0].response) is not None:
                self._places.popleft()
                self._trace.answered(response)
                await self._give(response)
                self._room.set()
                if self.last_words:
                    raise StreamEnded(self.last_words)
        finally:
            self._writing = False

    async def _give(self, response: pb.StreamActionsResponse) -> None:
        """Send an answer, as soon as there is room for it on the way."""
        try:
            async with asyncio.timeout(TAKE_SECONDS):
                await self._context.write(response)
        except TimeoutError:
            message = f"no answer was taken for {TAKE_SECONDS:g} s"
            raise StreamEnded(message, grpc.StatusCode.DEADLINE_EXCEEDED) from None
