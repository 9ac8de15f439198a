"""What a robot's program can catch.

::

    ChunkcastError
     ├── PolicyUnavailable     the server cannot be reached, is not ready, or went away
     │    └── NotAllowed       it does not know this robot's token
     ├── ChunkTimeout          no answer within the time given
     ├── PolicyOverloaded      too many robots ask at once; says when to try again
     ├── PolicyNotFound        the server does not serve this policy, or this version of it
     ├── ObservationError      the server refused one observation; the stream goes on
     ├── PolicyUnhealthy       the server judges the policy out of its element, and the robot is set to stop then
     ├── UnsafeAction          the policy's answer was not finite or out of bounds; nothing was sent
     └── RobotMismatch         the robot's observations are not those of the policy
"""

from __future__ import annotations

from chunkcast.client.chunk_health import ChunkHealth
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import one_line


class ChunkcastError(Exception):
    """Base of what can go wrong between a robot and a server. Wrong arguments are a ValueError."""


class PolicyUnavailable(ChunkcastError):
    """The server cannot be reached, is not ready, or went away. Hold or stop the robot, then connect again."""


class NotAllowed(PolicyUnavailable):
    """The server asks for a token, and knows none of this robot's. A player goes on trying: tokens are replaced."""


class ChunkTimeout(ChunkcastError):
    """No answer within the time given. Hold or stop the robot."""


class PolicyOverloaded(ChunkcastError):
    """Too many observations are waiting, or too many streams are open.

    Attributes:
        retry_after: seconds until there should be room.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        # Both go to the base class, so that the error survives the way between two processes.
        super().__init__(message, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


class PolicyNotFound(ChunkcastError):
    """The server does not serve this policy; the message names those it serves."""


class ObservationError(ChunkcastError):
    """The server refused one observation and says why; the stream goes on.

    Attributes:
        code: a ``chunkcast.v1.policy_pb2.ErrorCode``.
    """

    def __init__(self, code: pb.ErrorCode.ValueType, message: str) -> None:
        # Both go to the base class, so that the error survives the way between two processes.
        super().__init__(code, message)
        self.code = code

    def __str__(self) -> str:
        return str(self.args[1])


class UnsafeAction(ObservationError):
    """The policy's own answer was not finite or out of bounds; the server sent no action. Hold or stop the robot."""


class PolicyUnhealthy(ChunkcastError):
    """The server judges the policy out of its element (``PlaybackConfig(on_unhealthy="stop")``). Stop the robot; the
    message names the signal, its score, its threshold, and the tick that was judged.

    Attributes:
        health: the judgement.
    """

    def __init__(self, message: str, health: ChunkHealth) -> None:
        # Both go to the base class, so that the error survives the way between two processes.
        super().__init__(message, health)
        self.health = health

    def __str__(self) -> str:
        return str(self.args[0])


class RobotMismatch(ChunkcastError):
    """The robot's observations are not those of the policy, or the policy's contract has changed under the robot."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))  # it quotes what a server says of its policy
