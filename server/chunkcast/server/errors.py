"""What the server refuses.

::

    BadFlag              a command line's value that cannot be served
    BundleError          a bundle is missing, damaged, of an unknown version or contradicts itself
    ProviderMissing      an execution provider that was asked for cannot be used
    PolicyError          a version cannot be loaded, promoted, rolled back or unloaded
    UnknownPolicy        no such policy, or version of it, is served
    Overloaded           too many observations or streams; says when to try again
    ObservationRejected  an observation cannot be used; becomes an ObservationError in the stream
"""

from __future__ import annotations

from chunkcast.v1 import policy_pb2 as pb


class BadFlag(Exception):
    """A flag's value that cannot be served. Not a ValueError, which tyro would draw a box around."""


class BundleError(Exception):
    """A bundle that cannot be served. The message is one line: what was found, what was expected, what to do."""


class ProviderMissing(Exception):
    """An execution provider that was asked for cannot be used on this machine."""


class PolicyError(Exception):
    """What was asked of a policy cannot be done; nothing has changed."""


class UnknownPolicy(Exception):
    """No such policy, or version of it, is served; the message names those that are."""


class Overloaded(Exception):
    """Too many observations are waiting.

    Attributes:
        retry_after: seconds until there should be room.
    """

    def __init__(self, retry_after: float, waiting: int) -> None:
        super().__init__(f"{waiting} observations are waiting already; try again in {retry_after * 1e3:.0f} ms")
        self.retry_after = retry_after


class ObservationRejected(Exception):
    """An observation that cannot be used.

    Attributes:
        code: what a robot's program can act on.
    """

    def __init__(self, code: pb.ErrorCode.ValueType, message: str) -> None:
        super().__init__(message)
        self.code = code
