"""What the server refuses.

::

    BadFlag              a command line's value that cannot be served
    BundleError          a bundle is missing, damaged, of an unknown version or contradicts itself
    ObservationRejected  an observation cannot be used; becomes an ObservationError in the stream
"""

from __future__ import annotations

from chunkcast.v1 import policy_pb2 as pb


class BadFlag(Exception):
    """A flag's value that cannot be served. Not a ValueError, which tyro would draw a box around."""


class BundleError(Exception):
    """A bundle that cannot be served. The message is one line: what was found, what was expected, what to do."""


class ObservationRejected(Exception):
    """An observation that cannot be used.

    Attributes:
        code: what a robot's program can act on.
    """

    def __init__(self, code: pb.ErrorCode.ValueType, message: str) -> None:
        super().__init__(message)
        self.code = code
