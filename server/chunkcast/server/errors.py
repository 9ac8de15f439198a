"""What the server refuses.

::

    BadFlag              a command line's value that cannot be served
    BundleError          a bundle is missing, damaged, of an unknown version or contradicts itself
    ProviderMissing      an execution provider that was asked for cannot be used
    PolicyError          a version cannot be loaded, promoted, rolled back or unloaded
    UnknownPolicy        no such policy, or version of it, is served
    Overloaded           too many observations or streams; says when to try again
     └── RateLimited     one client makes more requests than it may
    ObservationRejected  an observation cannot be used; becomes an ObservationError in the stream
"""

from __future__ import annotations

import math

from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import one_line


class BadFlag(Exception):
    """A flag's value that cannot be served. Not a ValueError, which tyro would draw a box around."""


class BundleError(Exception):
    """A bundle that cannot be served. The message is one line: what was found, what was expected, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ProviderMissing(Exception):
    """An execution provider that was asked for cannot be used on this machine."""


class PolicyError(Exception):
    """What was asked of a policy cannot be done; nothing has changed."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class UnknownPolicy(Exception):
    """No such policy, or version of it, is served; the message names those that are."""


class Overloaded(Exception):
    """More is asked for than can be answered.

    Attributes:
        retry_after: seconds until there should be room.
        code: what a robot's program can act on.
    """

    code: pb.ErrorCode.ValueType = pb.ERROR_CODE_OVERLOADED

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(f"{message}; try again in {math.ceil(retry_after * 1e3)} ms")
        self.retry_after = retry_after


class RateLimited(Overloaded):
    """One client makes more requests than it may."""

    code: pb.ErrorCode.ValueType = pb.ERROR_CODE_RATE_LIMITED

    def __init__(self, client: str, rate: float, retry_after: float) -> None:
        super().__init__(f"{client} may make {rate:g} requests a second (--max-client-rate)", retry_after)


class ObservationRejected(Exception):
    """An observation that cannot be used.

    Attributes:
        code: what a robot's program can act on.
    """

    def __init__(self, code: pb.ErrorCode.ValueType, message: str) -> None:
        super().__init__(message)
        self.code = code
